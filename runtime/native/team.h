// Threads that stay ready between short pieces of work, such as the products of a decode step.
#pragma once

#include <functional>

namespace sdrpn {

// Calls `task` once with each number below `count`, on up to `threads` threads, the calling one among them. Helpers are
// started with the first call that wants them; after their work they look for more for a while, and then sleep until
// there is some. Where another thread has their help already, the caller does all by itself. A child process after a
// fork starts helpers of its own. `task` must not throw.
void share_ready(int count, const std::function<void(int)>& task, int threads);

}  // namespace sdrpn
