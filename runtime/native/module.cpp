// sdrpn._native: boxes of a picture to the vision tower's input, on the CPU.
#include <chrono>
#include <stdexcept>
#include <string>

#include <nanobind/nanobind.h>

#include "arguments.h"
#include "pool.h"

namespace nb = nanobind;

namespace {

// Checks for Ctrl-C while the GIL is released; only as often as a user would notice.
class Interruption {
public:
    void operator()() {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < std::chrono::milliseconds(50)) return;
        last_ = now;
        const nb::gil_scoped_acquire hold;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

void check_threads(int threads) {
    if (threads >= 1 && threads <= sdrpn::cores()) return;
    throw std::invalid_argument("threads is " + std::to_string(threads) + "; expected 1 to " +
                                std::to_string(sdrpn::cores()) + ", the cores of this machine");
}

void prepare(nb::handle picture, nb::handle boxes, nb::handle out, nb::handle filter, nb::handle colour,
             nb::handle mean, nb::handle deviation, int threads, bool plain) {
    sdrpn::Job job{};
    job.picture = sdrpn::picture_of(picture);
    sdrpn::read_request({boxes, filter, colour, mean, deviation}, job);
    sdrpn::read_result(out, job);
    check_threads(threads);
    job.threads = threads;
    job.plain = plain;
    const nb::gil_scoped_release release;
    sdrpn::prepare(job, Interruption());
}

void prepare_patches(nb::handle picture, nb::handle boxes, nb::handle out, nb::handle size_wh, int patch, int merge,
                     bool columns_first, nb::handle mean, nb::handle deviation, int threads, bool plain) {
    sdrpn::PatchJob patches{};
    sdrpn::Job& job = patches.job;
    job.picture = sdrpn::picture_of(picture);
    sdrpn::read_request({boxes, nb::str("bicubic"), nb::none(), mean, deviation}, job);
    sdrpn::read_patches(out, {size_wh, patch, merge}, patches);
    check_threads(threads);
    job.threads = threads;
    job.plain = plain;
    patches.columns_first = columns_first;
    const nb::gil_scoped_release release;
    sdrpn::write_patches(patches, Interruption());
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Boxes of a picture, resized as Pillow does and normalised, on the CPU.";
    module.attr("SANITIZED") = SDRPN_SANITIZED != 0;
    module.def("cores", &sdrpn::cores, "The cores of this machine: the most threads that `prepare` takes.");
    module.def("prepare", &prepare, nb::arg("picture").none(), nb::arg("boxes").none(), nb::arg("out").none(),
               nb::kw_only(), nb::arg("filter").none(), nb::arg("colour").none(), nb::arg("mean").none(),
               nb::arg("std").none(), nb::arg("threads") = 1, nb::arg("plain") = false,
               "Write every box, resized and normalised, to `out` (N, 3, R, S).");
    module.def("prepare_patches", &prepare_patches, nb::arg("picture").none(), nb::arg("boxes").none(),
               nb::arg("out").none(), nb::kw_only(), nb::arg("size_wh").none(), nb::arg("patch"), nb::arg("merge"),
               nb::arg("columns_first"), nb::arg("mean").none(), nb::arg("std").none(), nb::arg("threads") = 1,
               nb::arg("plain") = false,
               "Write one box, resized (bicubic) and normalised, as patches to `out` (patches, 3 * patch * patch).");
}
