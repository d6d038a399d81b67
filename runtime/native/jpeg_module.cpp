// sdrpn._native_jpeg: JPEG files, or parts of them, into a caller's array.
#include <cstddef>
#include <cstdio>
#include <stdexcept>

#include <jpeglib.h>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "jpeg.h"

#define SDRPN_TEXT_OF(words) #words
#define SDRPN_TEXT(macro) SDRPN_TEXT_OF(macro)

namespace nb = nanobind;

namespace {

using Pixels = nb::ndarray<uint8_t, nb::ndim<3>, nb::device::cpu>;

void decode(nb::bytes data, Pixels out, int left, int top, int denominator) {
    const bool rows_of_pixels = out.stride(2) == 1 && out.stride(1) == 3 && out.stride(0) >= int64_t(out.shape(1)) * 3;
    if (out.shape(2) != 3 || out.size() == 0 || !rows_of_pixels || out.shape(0) > 65535 || out.shape(1) > 65535) {
        throw std::invalid_argument("out is not (H, W, 3) with whole pixels side by side, or empty, or above 65535 px");
    }
    if (denominator != 1 && denominator != 2 && denominator != 4 && denominator != 8) {
        throw std::invalid_argument("denominator is " + std::to_string(denominator) + "; expected 1, 2, 4 or 8");
    }
    const sdrpn::JpegPart part{left,       top,           int(out.shape(1)), int(out.shape(0)),
                               out.data(), out.stride(0), denominator};
    const auto* bytes = static_cast<const uint8_t*>(data.data());
    const size_t size = data.size();
    const nb::gil_scoped_release release;
    sdrpn::decode_jpeg(bytes, size, part);
}

}  // namespace

NB_MODULE(_native_jpeg, module) {
    module.doc() = "JPEG files, or parts of them, with libjpeg-turbo.";
    module.attr("SANITIZED") = SDRPN_SANITIZED != 0;
    module.attr("LIBJPEG_TURBO_VERSION") = SDRPN_TEXT(LIBJPEG_TURBO_VERSION);  // of the headers
    module.def("decode", &decode, nb::arg("data"), nb::arg("out").noconvert(), nb::kw_only(), nb::arg("left") = 0,
               nb::arg("top") = 0, nb::arg("denominator") = 1,
               "Fill `out` (H, W, 3) with the pixels from (left, top) on.");
}
