#include "team.h"

#include <pthread.h>

#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>

#include "pool.h"

namespace sdrpn {
namespace {

// How often a thread looks before it sleeps: some tens of microseconds, about the time between two products of a step.
constexpr int kLooks = 4000;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Job {
    const std::function<void(int)>& task;
    int count;
    std::atomic<int> next{0};

    void take_part() {
        for (int number = next++; number < count; number = next++) task(number);
    }
};

// Helpers and what they share. Never destroyed: they may sleep when the process ends.
class Team {
public:
    void share(int count, const std::function<void(int)>& task, int threads) {
        Job job{task, count};
        const std::unique_lock<std::mutex> hold(busy_, std::try_to_lock);
        if (!hold.owns_lock()) {
            job.take_part();
            return;
        }
        while (helpers_ < threads - 1 && start_helper()) {
        }
        welcome_ = threads - 1;
        job_ = &job;
        ++calls_;
        calls_.notify_all();
        job.take_part();
        job_ = nullptr;
        // Who has seen the job has said so before: see `help`.
        for (int looks = 0, at_work = working_; at_work != 0; at_work = working_) {
            if (++looks < kLooks) {
                pause();
            } else {
                working_.wait(at_work);
            }
        }
    }

private:
    bool start_helper() {
        try {
            std::thread([this, number = helpers_] { help(number); }).detach();
        } catch (const std::system_error&) {
            return false;  // no more threads available: continue with fewer
        }
        ++helpers_;
        return true;
    }

    void help(int number) {
        for (int seen = 0;;) {
            for (int looks = 0; calls_ == seen; ++looks) {
                if (looks < kLooks) {
                    pause();
                } else {
                    calls_.wait(seen);
                }
            }
            seen = calls_;
            if (number >= welcome_) continue;
            ++working_;
            if (Job* job = job_) job->take_part();
            if (--working_ == 0) working_.notify_all();
        }
    }

    std::mutex busy_;
    int helpers_ = 0;               // under busy_
    std::atomic<int> welcome_{0};   // helpers that the current call wants
    std::atomic<int> calls_{0};
    std::atomic<int> working_{0};   // helpers that may have a job
    std::atomic<Job*> job_{nullptr};
};

std::atomic<Team*> team{nullptr};

Team& the_team() {
    static const int once = pthread_atfork(nullptr, nullptr, [] { team = nullptr; });  // its helpers stayed behind
    static_cast<void>(once);
    Team* found = team;
    if (found == nullptr) {
        auto* made = new Team();
        if (team.compare_exchange_strong(found, made)) return *made;
        delete made;
    }
    return *found;
}

}  // namespace

void share_ready(int count, const std::function<void(int)>& task, int threads) {
    if (threads <= 1 || count <= 1) {
        for (int number = 0; number < count; ++number) task(number);
        return;
    }
    the_team().share(count, task, threads);
}

}  // namespace sdrpn
