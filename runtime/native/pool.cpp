#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace sdrpn {
namespace {

struct Progress {
    std::atomic<int> next{0};  // the first task that has not started; at least `count` where there is none
    std::atomic<int> left{0};  // tasks that have not finished
};

// State shared by the threads of one call. It outlives the call where a helper starts too late to do anything.
class Work {
public:
    explicit Work(const std::vector<Phase>& phases) : phases_(phases), progress_(phases.size()) {
        for (size_t i = 0; i < phases.size(); ++i) progress_[i].left = phases[i].count;
    }

    void take_part(const std::function<void()>& between) {
        for (size_t i = 0; i < phases_.size(); ++i) {
            Progress& at = progress_[i];
            for (int number = at.next++; number < phases_[i].count; number = at.next++) {
                try {
                    phases_[i].task(number);
                    between();
                } catch (...) {
                    give_up(i);
                }
                end_tasks(at, 1);
            }
            for (int left = at.left; left > 0; left = at.left) at.left.wait(left);
        }
    }

    // Taken out by the caller: a helper must not hold the last reference to a Python exception.
    std::exception_ptr take_failure() {
        const std::lock_guard<std::mutex> hold(failure_lock_);
        return std::exchange(failure_, nullptr);
    }

private:
    static void end_tasks(Progress& at, int count) {
        if (count > 0 && (at.left -= count) == 0) at.left.notify_all();
    }

    // Stores the current exception, and skips the tasks that have not started.
    void give_up(size_t phase) {
        {
            const std::lock_guard<std::mutex> hold(failure_lock_);
            if (!failure_) failure_ = std::current_exception();
        }
        for (; phase < phases_.size(); ++phase) {
            const int count = phases_[phase].count;
            end_tasks(progress_[phase], count - std::min(count, progress_[phase].next.exchange(count)));
        }
    }

    std::vector<Phase> phases_;
    std::vector<Progress> progress_;
    std::mutex failure_lock_;
    std::exception_ptr failure_;
};

std::atomic<int> helpers{0};  // in all calls

bool add_helper() {
    static const int once = pthread_atfork(nullptr, nullptr, [] { helpers = 0; });  // the child process has no helpers
    static_cast<void>(once);
    if (++helpers < cores()) return true;
    --helpers;
    return false;
}

void start_helper(const std::shared_ptr<Work>& work) {
    try {
        std::thread([work] {
            work->take_part([] {});
            --helpers;
        }).detach();
    } catch (const std::system_error&) {  // no more threads available: continue with fewer
        --helpers;
    }
}

}  // namespace

int cores() {
    // The library reads a file for it: as long as a small product takes.
    static const int found = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    return found;
}

void share(const std::vector<Phase>& phases, int threads, const std::function<void()>& poll) {
    const auto work = std::make_shared<Work>(phases);
    for (int i = 1; i < threads && add_helper(); ++i) start_helper(work);
    work->take_part(poll);
    if (const std::exception_ptr failure = work->take_failure()) std::rethrow_exception(failure);
}

}  // namespace sdrpn
