#include "media/ffmpeg.h"

#include <new>

#include "base/error.h"

namespace calibatt::ffmpeg {

std::string message(int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  return av_strerror(code, text, sizeof(text)) == 0 ? text : "error " + std::to_string(code);
}

void silence() {
  av_log_set_level(AV_LOG_QUIET);
}

Frame make_frame(AVPixelFormat format, int width, int height) {
  Frame frame(av_frame_alloc());
  if (!frame) throw std::bad_alloc();
  frame->format = format;
  frame->width = width;
  frame->height = height;
  if (av_frame_get_buffer(frame.get(), 0) < 0) throw std::bad_alloc();
  return frame;
}

Packet make_packet() {
  Packet packet(av_packet_alloc());
  if (!packet) throw std::bad_alloc();
  return packet;
}

Scaler make_scaler(int width, int height, AVPixelFormat from, AVPixelFormat to, AVColorSpace colorspace,
                   bool full_range) {
  // Accurate rounding and full chroma: a picture is converted once, and PSNR is measured on what comes out.
  constexpr int kFlags = SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP | SWS_BITEXACT;
  Scaler scaler(sws_getContext(width, height, from, width, height, to, kFlags, nullptr, nullptr, nullptr));
  CALIBATT_ASSERT(scaler != nullptr);
  const int* coefficients = sws_getCoefficients(colorspace);
  const bool from_rgb = from == AV_PIX_FMT_RGB24;
  // RGB is of full range on its side. The call declines where there is no such conversion (RGB to RGB), which is right.
  sws_setColorspaceDetails(scaler.get(), coefficients, from_rgb ? 1 : full_range, coefficients,
                           from_rgb ? full_range : 1, 0, 1 << 16, 1 << 16);
  return scaler;
}

}  // namespace calibatt::ffmpeg
