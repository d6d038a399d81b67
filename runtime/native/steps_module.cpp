// sdrpn._native_steps: what a decode step takes its time for, on the CPU: products of a few rows with matrices in 4, 8 or
// 16 bits, and attention of one row over its cache.
#include <stdexcept>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "attention.h"
#include "instructions.h"
#include "pool.h"
#include "products.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint16_t, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr int kMostBlock = 1 << 16;       // numbers of a block: sums of 8-bit products stay below 2^31
constexpr int64_t kMostSide = 1'000'000;  // of a matrix

// Two sides of a shape.
struct Sides {
    int64_t first, second;
};

Sides sides_of(const Result& array) {
    return {static_cast<int64_t>(array.shape(0)), static_cast<int64_t>(array.shape(1))};
}

std::string text_of(const char* text) { return text; }
std::string text_of(int64_t number) { return std::to_string(number); }
std::string text_of(const Sides& of) { return "(" + text_of(of.first) + ", " + text_of(of.second) + ")"; }

// The message is put together from its parts only where it is needed: that takes longer than a small product.
template <typename... Parts>
void require(bool right, const Parts&... parts) {
    if (!right) throw std::invalid_argument((text_of(parts) + ...));
}

void check_threads(int threads) {
    require(threads >= 1 && threads <= sdrpn::cores(),
            "threads is ", threads, "; expected 1 to ", sdrpn::cores(), ", the cores of this machine");
}

// Args: name: empty for the best ones
const char* instructions_of(const char* name) {
    if (*name == 0) return sdrpn::best_instructions();
    require(sdrpn::has_instructions(name), "this processor, or this build, has no instructions ", name);
    return name;
}

class PackedMatrix {
public:
    static PackedMatrix coded(const Bytes& codes, const Words& scales, int bits, int64_t inputs, int64_t columns) {
        require(bits == 4 || bits == 8, "codes have ", bits, " bits; expected 4 or 8");
        check_sides(inputs, columns);
        require(scales.ndim() == 2 && scales.shape(0) > 0 && static_cast<int64_t>(scales.shape(1)) == columns,
                "scales have another shape; expected (blocks, ", columns, ")");
        const auto blocks = static_cast<int64_t>(scales.shape(0));
        const int64_t block = inputs / blocks;
        const int least = bits == 4 ? sdrpn::kStep : 4;
        require(block * blocks == inputs && block % least == 0 && block <= kMostBlock,
                inputs, " inputs in ", blocks, " blocks; expected blocks of ", least, ", or several times as many");
        const int64_t bytes = (inputs * columns * bits + 7) / 8;
        require(static_cast<int64_t>(codes.nbytes()) == bytes,
                codes.nbytes(), " bytes of codes; expected ", bytes);
        const auto code = bits == 4 ? sdrpn::Code::kInt4 : sdrpn::Code::kInt8;
        const nb::gil_scoped_release release;
        return PackedMatrix(sdrpn::pack(code, codes.data(), scales.data(), static_cast<int>(inputs),
                                        static_cast<int>(columns), static_cast<int>(block)));
    }

    static PackedMatrix half(const Words& numbers) {
        require(numbers.ndim() == 2, "numbers have another shape; expected (inputs, columns)");
        check_sides(numbers.shape(0), numbers.shape(1));
        const nb::gil_scoped_release release;
        return PackedMatrix(sdrpn::pack(sdrpn::Code::kHalf, numbers.data(), nullptr,
                                        static_cast<int>(numbers.shape(0)), static_cast<int>(numbers.shape(1)), 0));
    }

    void multiply(const Floats& rows, const Result& out, int threads, const char* instructions) const {
        require(static_cast<int>(rows.shape(1)) == matrix_.tiles.inputs,
                "rows have ", rows.shape(1), " numbers; expected ", matrix_.tiles.inputs);
        require(out.shape(0) == rows.shape(0) && static_cast<int>(out.shape(1)) == matrix_.tiles.columns,
                "the result has the shape ", sides_of(out), "; expected ",
                Sides{static_cast<int64_t>(rows.shape(0)), matrix_.tiles.columns});
        check_threads(threads);
        const char* chosen = instructions_of(instructions);
        const nb::gil_scoped_release release;
        sdrpn::multiply(matrix_, rows.data(), static_cast<int>(rows.shape(0)), out.data(), threads, chosen);
    }

    int64_t bytes() const { return matrix_.bytes(); }

private:
    explicit PackedMatrix(sdrpn::Matrix matrix) : matrix_(std::move(matrix)) {}

    static void check_sides(int64_t inputs, int64_t columns) {
        require(inputs >= 1 && columns >= 1 && inputs <= kMostSide && columns <= kMostSide,
                "a matrix of ", Sides{inputs, columns}, "; expected sides of 1 to ", kMostSide);
    }

    sdrpn::Matrix matrix_;
};

using Counts = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pages = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;

void attend(const Floats& queries, const Floats& new_keys, const Floats& new_values, const Pages& keys,
            const Pages& values, const Counts& past, const Result& out, float scale, int window, int threads,
            const char* instructions) {
    const bool half = keys.dtype() == nb::dtype<uint16_t>();
    require((half || keys.dtype() == nb::dtype<float>()) && values.dtype() == keys.dtype(),
            "caches have other types; expected both in uint16 or float32");
    for (size_t axis = 0; axis < 4; ++axis) {
        require(keys.shape(axis) == values.shape(axis), "keys and values have different shapes");
    }
    const auto batch = static_cast<int64_t>(past.shape(0)), kv_heads = static_cast<int64_t>(keys.shape(1));
    const auto width = static_cast<int64_t>(keys.shape(3)), pages = static_cast<int64_t>(keys.shape(0));
    require(batch >= 1 && pages >= batch && pages % batch == 0 && kv_heads >= 1 &&
                keys.shape(2) == sdrpn::kPageRows && width >= sdrpn::kVector && width % sdrpn::kVector == 0 &&
                width <= sdrpn::kWidest,
            "caches have another shape; expected (B * blocks, H_kv, ", sdrpn::kPageRows, ", d) with d a multiple of ",
            sdrpn::kVector);
    const int64_t heads = static_cast<int64_t>(queries.shape(1)) / width, blocks = pages / batch;
    const auto rows_of = [&](const auto& array, int64_t count) {
        return static_cast<int64_t>(array.shape(0)) == batch && static_cast<int64_t>(array.shape(1)) == count * width;
    };
    require(heads >= 1 && heads % kv_heads == 0 && rows_of(queries, heads) && rows_of(new_keys, kv_heads) &&
                rows_of(new_values, kv_heads) && rows_of(out, heads),
            "rows have other shapes; expected (B, H * d) for queries and result, (B, H_kv * d) for keys and values");
    for (int64_t sequence = 0; sequence < batch; ++sequence) {
        const int64_t rows = past.data()[sequence];
        require(rows >= 0 && rows < blocks * sdrpn::kPageRows,
                rows, " rows before the new one; expected 0 to ", blocks * sdrpn::kPageRows - 1);
    }
    require(window >= 0, "window is ", window, "; expected at least 0");
    check_threads(threads);
    const char* chosen = instructions_of(instructions);
    const sdrpn::AttentionJob job{queries.data(),
                                  new_keys.data(),
                                  new_values.data(),
                                  keys.data(),
                                  values.data(),
                                  out.data(),
                                  past.data(),
                                  half,
                                  static_cast<int>(batch),
                                  static_cast<int>(heads),
                                  static_cast<int>(kv_heads),
                                  static_cast<int>(width),
                                  static_cast<int>(blocks),
                                  window,
                                  scale};
    const nb::gil_scoped_release release;
    sdrpn::attend(job, threads, chosen);
}

}  // namespace

NB_MODULE(_native_steps, module) {
    nb::set_leak_warnings(false);  // a session that is open when Python ends is not closed any more
    module.doc() = "Products and attention of decode steps, on the CPU.";
    module.attr("SANITIZED") = SDRPN_SANITIZED != 0;
    module.attr("PAGE_ROWS") = sdrpn::kPageRows;
    module.def("instructions", &sdrpn::best_instructions,
               "The best instructions of this processor: \"avx512\" (with VNNI), \"avx2\" (with F16C) or \"plain\".");
    module.def("attend", &attend, nb::arg("queries"), nb::arg("new_keys"), nb::arg("new_values"), nb::arg("keys"),
               nb::arg("values"), nb::arg("past"), nb::arg("out"), nb::kw_only(), nb::arg("scale"),
               nb::arg("window") = 0, nb::arg("threads") = 1, nb::arg("instructions") = "",
               "One new row of each sequence: write keys and values (B, H_kv * d) into the caches (B * blocks, H_kv, "
               "PAGE_ROWS, d), float32 or the bits of float16, behind `past` (B,) rows, and attend with queries "
               "(B, H * d) to these and the new one, or the last `window` of them -> out, as queries.");
    nb::class_<PackedMatrix>(module, "PackedMatrix", "A matrix (inputs, columns), packed for products.")
        .def_static("coded", &PackedMatrix::coded, nb::arg("codes"), nb::arg("scales"), nb::kw_only(),
                    nb::arg("bits"), nb::arg("inputs"), nb::arg("columns"),
                    "Of codes in two's complement, row by row, in 4 bits the first of two in the lower half of a "
                    "byte; scales (blocks, columns) are the bits of float16, each for inputs / blocks codes of a column.")
        .def_static("half", &PackedMatrix::half, nb::arg("numbers"),
                    "Of the bits of float16 (inputs, columns).")
        .def("multiply", &PackedMatrix::multiply, nb::arg("rows"), nb::arg("out"), nb::kw_only(),
             nb::arg("threads") = 1, nb::arg("instructions") = "",
             "Write rows (R, inputs) times the matrix to `out` (R, columns), both float32. Rows are multiplied with "
             "codes in blocks of 8 bits.")
        .def_prop_ro("nbytes", &PackedMatrix::bytes);
}
