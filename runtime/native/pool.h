// Share numbered tasks among a bounded number of threads.
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

// Runs the phases one after the other, the tasks of each on up to `threads` threads. The calling thread is one of them,
// and calls `poll` between its tasks; what it or a task throws ends the rest and is thrown from here. It waits for tasks
// that others have begun, not for threads that have not come to begin one: on a busy machine it does the work alone.
// Helpers are started anew for each call, which takes about 10 us each, so that no fork and no end of the interpreter
// meets them waiting; all calls of the process together have at most as many as there are further cores.
void share(const std::vector<Phase>& phases, int threads, const std::function<void()>& poll);

}  // namespace sdrpn
