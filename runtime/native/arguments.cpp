#include "arguments.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

namespace sdrpn {
namespace {

constexpr int64_t kMaxSide = 1'000'000;  // of a picture or a box: sums and sizes cannot overflow
constexpr int64_t kMaxResult = 16'384;   // of a result's side
constexpr int kMaxPatch = 256;           // pixels of a patch, and patches of a token, a side

using AnyArray = nb::ndarray<nb::ro>;

std::string kind_of(nb::handle object) { return nb::str(object.type().attr("__name__")).c_str(); }

AnyArray array_of(nb::handle object, const char* name, const char* expected) {
    AnyArray array;
    if (!nb::try_cast(object, array, false) || array.device_type() != nb::device::cpu::value) {
        const std::string text = std::string(name) + " is a " + kind_of(object) + "; expected " + expected;
        throw nb::type_error(text.c_str());
    }
    return array;
}

// As Python writes a tuple.
std::string tuple_of(const std::vector<int64_t>& values) {
    std::string text;
    for (const int64_t value : values) text += (text.empty() ? "(" : ", ") + std::to_string(value);
    if (values.empty()) return "()";
    return text + (values.size() == 1 ? ",)" : ")");
}

std::string shape_of(const AnyArray& array) {
    std::vector<int64_t> sides;
    for (size_t i = 0; i < array.ndim(); ++i) sides.push_back(array.shape(i));
    return tuple_of(sides);
}

void refuse_dtype(const std::string& message) { throw nb::type_error(message.c_str()); }

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

template <typename Value>
std::array<Value, 3> three_of(nb::handle object, const char* name, const char* expected) {
    std::array<Value, 3> values;
    if (!nb::try_cast(object, values)) {
        const std::string text =
            std::string(name) + " is " + nb::repr(object).c_str() + "; expected " + expected;
        throw nb::type_error(text.c_str());
    }
    return values;
}

std::array<float, 3> finite_three(nb::handle object, const char* name, bool positive) {
    const auto values = three_of<double>(object, name, "three numbers, for R, G and B");
    std::array<float, 3> result;
    for (int c = 0; c < kChannels; ++c) {
        result[c] = static_cast<float>(values[c]);
        if (std::isfinite(result[c]) && (!positive || result[c] > 0.0f)) continue;
        refuse(std::string(name) + " is " + nb::repr(object).c_str() + "; expected three finite numbers" +
               (positive ? " above 0" : ""));
    }
    return result;
}

void check_side(int64_t size, int64_t most) {
    if (size >= 1 && size <= most) return;
    refuse("a side of the result is " + std::to_string(size) + " px; expected 1 to " + std::to_string(most));
}

std::string text_of(const Box& box) { return tuple_of({box.x1, box.y1, box.x2, box.y2}); }

void check_box(const Box& box, const Picture& picture, bool may_leave) {
    const std::string size = std::to_string(picture.width) + "x" + std::to_string(picture.height);
    if (box.x1 >= box.x2 || box.y1 >= box.y2) {
        refuse("the box " + text_of(box) + " is empty; expected x1 < x2 and y1 < y2");
    }
    const bool within = box.x1 >= 0 && box.y1 >= 0 && box.x2 <= picture.width && box.y2 <= picture.height;
    if (!may_leave && !within) {
        refuse("the box " + text_of(box) + " leaves the picture of " + size +
               " px; keep it inside or name the colour of what lies outside");
    }
    if (box.x1 >= picture.width || box.y1 >= picture.height || box.x2 <= 0 || box.y2 <= 0) {
        refuse("the box " + text_of(box) + " has no pixel of the picture of " + size + " px");
    }
}

int coordinate(int64_t value) {
    if (value < -kMaxSide || value > kMaxSide) {
        refuse("a box has the coordinate " + std::to_string(value) + "; expected at most " + std::to_string(kMaxSide) +
               " px in either direction");
    }
    return static_cast<int>(value);
}

std::vector<Box> boxes_of(nb::handle object) {
    const AnyArray array = array_of(object, "boxes", "an array (N, 4) of int64");
    if (array.dtype() != nb::dtype<int64_t>()) refuse_dtype("boxes have another dtype than int64; convert them");
    if (array.ndim() != 2 || array.shape(1) != 4 || array.shape(0) == 0) {
        refuse("boxes have the shape " + shape_of(array) + "; expected (N, 4) with N of at least 1");
    }
    std::vector<Box> boxes;
    const auto* data = static_cast<const int64_t*>(array.data());
    for (size_t i = 0; i < array.shape(0); ++i) {
        int at[4];
        for (int k = 0; k < 4; ++k) at[k] = coordinate(data[int64_t(i) * array.stride(0) + k * array.stride(1)]);
        boxes.push_back({at[0], at[1], at[2], at[3]});
    }
    return boxes;
}

Filter filter_of(nb::handle object) {
    std::string name;
    if (!nb::try_cast(object, name)) refuse_dtype("filter is a " + kind_of(object) + "; expected a text");
    if (name == "bilinear") return Filter::bilinear;
    if (name == "bicubic") return Filter::bicubic;
    refuse("filter is " + std::string(nb::repr(object).c_str()) + "; expected 'bilinear' or 'bicubic'");
}

}  // namespace

Picture picture_of(nb::handle object) {
    const AnyArray array = array_of(object, "the picture", "an array (H, W, 3) of uint8 in ordinary memory");
    if (array.dtype() != nb::dtype<uint8_t>()) refuse_dtype("the picture has another dtype than uint8; convert it");
    if (array.ndim() != 3 || array.shape(2) != kChannels || array.size() == 0) {
        refuse("the picture has the shape " + shape_of(array) + "; expected (H, W, 3) with H and W of at least 1");
    }
    const int64_t height = array.shape(0), width = array.shape(1);
    Picture picture = picture_of_size(height, width);
    const bool pixels_adjoin = array.stride(2) == 1 && (array.stride(1) == kChannels || width == 1);
    if (!pixels_adjoin || (height > 1 && array.stride(0) < width * kChannels)) {
        refuse("the picture's strides are " + tuple_of({array.stride(0), array.stride(1), array.stride(2)}) +
               "; expected whole pixels side by side and rows from top to bottom: copy it with ascontiguousarray");
    }
    picture.data = static_cast<const uint8_t*>(array.data());
    picture.row_stride = array.stride(0);
    return picture;
}

Picture picture_of_size(int64_t height, int64_t width) {
    if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide) {
        refuse("the picture is " + std::to_string(width) + "x" + std::to_string(height) + " px; expected sides of 1 to " +
               std::to_string(kMaxSide));
    }
    return {nullptr, width * kChannels, static_cast<int>(width), static_cast<int>(height)};
}

void read_request(const Request& request, Job& job) {
    job.filter = filter_of(request.filter);
    job.boxes = boxes_of(request.boxes);
    const bool may_leave = !request.colour.is_none();
    if (may_leave) {
        job.colour = three_of<uint8_t>(request.colour, "colour", "three whole numbers from 0 to 255, or None");
    } else {
        job.colour = {0, 0, 0};
    }
    for (const Box& box : job.boxes) check_box(box, job.picture, may_leave);
    job.mean = finite_three(request.mean, "mean", false);
    job.deviation = finite_three(request.deviation, "std", true);
}

void read_result(nb::handle object, Job& job) {
    const AnyArray array = array_of(object, "out", "an array (N, 3, R, S) of float32 or float16");
    nb::ndarray<> writable;
    if (!nb::try_cast(object, writable, false)) refuse("out is read-only; expected memory to write to");
    if (array.dtype() == nb::dtype<float>()) {
        job.value_bytes = 4;
    } else if (array.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && array.dtype().bits == 16) {
        job.value_bytes = 2;
    } else {
        refuse_dtype("out has another dtype than float32 and float16");
    }
    if (array.ndim() != 4 || array.shape(0) != job.boxes.size() || array.shape(1) != kChannels) {
        refuse("out has the shape " + shape_of(array) + "; expected (" + std::to_string(job.boxes.size()) +
               ", 3, R, S) for as many boxes");
    }
    check_result_side(array.shape(2));
    check_result_side(array.shape(3));
    int64_t expected = 1;
    for (int k = 3; k >= 0; --k) {
        if (array.shape(k) > 1 && array.stride(k) != expected) refuse("out is not contiguous; expected C order");
        expected *= array.shape(k);
    }
    job.out = writable.data();
    job.height = static_cast<int>(array.shape(2));
    job.width = static_cast<int>(array.shape(3));
}

void read_patches(nb::handle object, const PatchRequest& request, PatchJob& patches) {
    Job& job = patches.job;
    std::array<int64_t, 2> size;
    if (!nb::try_cast(request.size_wh, size)) {
        refuse_dtype(std::string("size_wh is ") + nb::repr(request.size_wh).c_str() + "; expected two whole numbers");
    }
    for (const int64_t side : size) check_side(side, kMaxSide);  // a long picture is resized to a long one
    if (request.patch < 1 || request.patch > kMaxPatch || request.merge < 1 || request.merge > kMaxPatch) {
        refuse("patch is " + std::to_string(request.patch) + " and merge " + std::to_string(request.merge) +
               "; expected 1 to " + std::to_string(kMaxPatch));
    }
    const int64_t cell = int64_t{request.patch} * request.merge;
    if (size[0] % cell != 0 || size[1] % cell != 0) {
        refuse("size_wh is " + tuple_of({size[0], size[1]}) + "; expected multiples of " + std::to_string(cell) +
               ", the patches of a token");
    }
    if (job.boxes.size() != 1) {
        refuse("there are " + std::to_string(job.boxes.size()) + " boxes; expected one, of which patches are made");
    }
    const char* expected = "an array (patches, numbers) of float32";
    const AnyArray array = array_of(object, "out", expected);
    nb::ndarray<> writable;
    if (!nb::try_cast(object, writable, false)) refuse("out is read-only; expected memory to write to");
    if (array.dtype() != nb::dtype<float>()) refuse_dtype("out has another dtype than float32");
    const int64_t count = size[0] / request.patch * (size[1] / request.patch);
    const int64_t numbers = int64_t{kChannels} * request.patch * request.patch;
    if (array.ndim() != 2 || int64_t(array.shape(0)) != count || int64_t(array.shape(1)) != numbers) {
        refuse("out has the shape " + shape_of(array) + "; expected " + tuple_of({count, numbers}));
    }
    const bool adjoins = (numbers == 1 || array.stride(1) == 1) && (count == 1 || array.stride(0) == numbers);
    if (!adjoins) refuse("out is not contiguous; expected C order");
    job.out = writable.data();
    job.value_bytes = sizeof(float);
    job.width = static_cast<int>(size[0]);
    job.height = static_cast<int>(size[1]);
    patches.patch = request.patch;
    patches.merge = request.merge;
}

void check_result_side(int64_t size) { check_side(size, kMaxResult); }

}  // namespace sdrpn
