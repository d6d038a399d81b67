#include "jpeg.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>

namespace sdrpn {
namespace {

// Blocks at a cut are upsampled without their neighbours: this margin makes the requested pixels exact. A block of the
// coarsest sampling is 32 pixels wide.
constexpr int kMargin = 64;

// libjpeg-turbo reports errors by longjmp: objects with destructors live outside of `run`.
class Decoder {
public:
    ~Decoder() { jpeg_destroy_decompress(&file_); }

    Decoder() {
        file_.err = jpeg_std_error(&errors_.base);
        errors_.base.error_exit = [](j_common_ptr file) {
            auto* errors = reinterpret_cast<Errors*>(file->err);
            file->err->format_message(file, errors->message);
            std::longjmp(errors->back, 1);
        };
        errors_.base.output_message = [](j_common_ptr) {};
        errors_.base.emit_message = [](j_common_ptr file, int level) {
            if (level < 0) file->err->error_exit(file);  // a warning: damaged data, left to Pillow
        };
    }

    void decode(const uint8_t* data, size_t size_bytes, const JpegPart& part) {
        if (!open(data, size_bytes)) fail();
        if (file_.num_components != 3 || file_.data_precision != 8) {
            throw std::invalid_argument("the JPEG file has no three channels of 8 bits");
        }
        if (!start(part.denominator)) fail();
        require_inside(part);
        if (part.left > 0 || part.width < static_cast<int>(file_.output_width)) {
            if (!cut_columns(part)) fail();
            row_.resize(size_t{file_.output_width} * 3);
        }
        if (!read_rows(part)) fail();
    }

private:
    struct Errors {
        jpeg_error_mgr base;
        std::jmp_buf back;
        char message[JMSG_LENGTH_MAX];
    };

    [[noreturn]] void fail() const { throw std::invalid_argument(std::string("libjpeg-turbo: ") + errors_.message); }

    void require_inside(const JpegPart& part) const {
        const int width = file_.output_width, height = file_.output_height;
        if (part.left >= 0 && part.top >= 0 && part.width >= 1 && part.height >= 1 &&
            part.left <= width - part.width && part.top <= height - part.height) {
            return;
        }
        throw std::invalid_argument("the part leaves the picture of " + std::to_string(width) + "x" +
                                    std::to_string(height) + " px");
    }

    bool open(const uint8_t* data, size_t size_bytes) {
        if (setjmp(errors_.back)) return false;
        jpeg_create_decompress(&file_);
        jpeg_mem_src(&file_, data, size_bytes);
        jpeg_read_header(&file_, TRUE);
        return true;
    }

    bool start(int denominator) {
        if (setjmp(errors_.back)) return false;
        file_.out_color_space = JCS_RGB;
        file_.scale_num = 1;
        file_.scale_denom = denominator;
        jpeg_start_decompress(&file_);
        return true;
    }

    bool cut_columns(const JpegPart& part) {
        if (setjmp(errors_.back)) return false;
        first_column_ = std::max(0, part.left - kMargin);
        const int last = std::min<int>(file_.output_width, part.left + part.width + kMargin);
        JDIMENSION width = last - first_column_;
        jpeg_crop_scanline(&file_, &first_column_, &width);
        return true;
    }

    bool read_rows(const JpegPart& part) {
        if (setjmp(errors_.back)) return false;
        jpeg_skip_scanlines(&file_, std::max(0, part.top - kMargin));
        const bool whole_rows = row_.empty();
        const size_t skipped = (part.left - first_column_) * size_t{3};
        while (static_cast<int>(file_.output_scanline) < part.top + part.height) {
            const int line = static_cast<int>(file_.output_scanline) - part.top;
            // Rows of the margin are written to the first requested row, which overwrites them.
            uint8_t* to = part.out + std::max(0, line) * part.out_stride;
            JSAMPROW row = whole_rows ? to : row_.data();
            if (jpeg_read_scanlines(&file_, &row, 1) != 1) return false;
            if (!whole_rows && line >= 0) memcpy(to, row_.data() + skipped, size_t{3} * part.width);
        }
        if (file_.output_scanline == file_.output_height) jpeg_finish_decompress(&file_);
        return true;
    }

    jpeg_decompress_struct file_{};
    Errors errors_{};
    JDIMENSION first_column_ = 0;
    std::vector<uint8_t> row_;
};

}  // namespace

void decode_jpeg(const uint8_t* data, size_t size_bytes, const JpegPart& part) {
    Decoder().decode(data, size_bytes, part);
}

}  // namespace sdrpn
