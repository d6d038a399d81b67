// Decode a JPEG file, or a part of it, with libjpeg-turbo. Knows nothing about Python or Pillow.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sdrpn {

// The requested part of a picture, in pixels after scaling, and its destination: bytes R, G, B.
struct JpegPart {
    int left, top, width, height;
    uint8_t* out;
    int64_t out_stride;
    int denominator;  // 1, 2, 4 or 8: each block of the file becomes 8 / denominator pixels wide and high
};

// Throws std::invalid_argument for all warnings and errors of libjpeg-turbo, and for a part outside the picture. The
// pixels equal those of the whole picture; rows below the part are not read.
void decode_jpeg(const uint8_t* data, size_t size_bytes, const JpegPart& part);

}  // namespace sdrpn
