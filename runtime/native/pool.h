// Distribute numbered tasks over a bounded number of threads.
#pragma once

#include <functional>
#include <vector>

namespace sdrpn {

struct Phase {
    int count;
    std::function<void(int)> task;  // called once with each number below `count`, from any thread
};

// The cores of this machine.
int cores();

// Runs the phases one after the other, the tasks of each on up to `threads` threads. The calling thread is one of them
// and calls `poll` between its tasks; an exception of `poll` or of a task cancels the rest and is rethrown here. The
// call waits for tasks that have started, not for threads that have not: on a busy machine the calling thread does all
// work. Helpers are started for each call, at about 10 us each, so that none is idle during a fork or at interpreter
// exit; all calls of the process together have at most one helper per further core.
void share(const std::vector<Phase>& phases, int threads, const std::function<void()>& poll);

}  // namespace sdrpn
