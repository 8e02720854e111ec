#include "media/image.h"

#include <cstring>
#include <new>

#include "base/error.h"
#include "io/atomic_file.h"
#include "media/ffmpeg.h"

namespace calibatt {

std::vector<uint8_t> encode_png(const uint8_t* rgb, int height, int width) {
  ffmpeg::silence();
  const AVCodec* codec = avcodec_find_encoder(AV_CODEC_ID_PNG);
  if (codec == nullptr) throw Error(ErrorKind::kUsage, "this FFmpeg has no PNG encoder; install a complete one");
  const ffmpeg::CodecContext context(avcodec_alloc_context3(codec));
  if (!context) throw std::bad_alloc();
  context->width = width;
  context->height = height;
  context->pix_fmt = AV_PIX_FMT_RGB24;
  context->time_base = {1, 25};
  context->thread_count = 1;
  av_opt_set(context->priv_data, "pred", "mixed", 0);
  int code = avcodec_open2(context.get(), codec, nullptr);
  const auto check = [&](int result) {
    if (result < 0) {
      throw Error(ErrorKind::kIo, "PNG of " + std::to_string(width) + "×" + std::to_string(height) +
                                      " pixels: cannot be encoded: " + ffmpeg::message(result));
    }
  };
  check(code);

  const ffmpeg::Frame frame = ffmpeg::make_frame(AV_PIX_FMT_RGB24, width, height);
  const size_t row_bytes = static_cast<size_t>(width) * 3;
  for (int y = 0; y < height; ++y) {
    std::memcpy(frame->data[0] + static_cast<ptrdiff_t>(y) * frame->linesize[0],
                rgb + static_cast<size_t>(y) * row_bytes, row_bytes);
  }
  frame->pts = 0;
  const ffmpeg::Packet packet = ffmpeg::make_packet();
  check(avcodec_send_frame(context.get(), frame.get()));
  check(avcodec_send_frame(context.get(), nullptr));
  check(avcodec_receive_packet(context.get(), packet.get()));
  return {packet->data, packet->data + packet->size};
}

void write_png(const Image& image, const std::string& path) {
  if (lower_extension(path) != ".png")
    throw Error(ErrorKind::kUsage, path + ": pictures are written as .png; use that extension");
  CALIBATT_ASSERT(image.height > 0 && image.width > 0);
  CALIBATT_ASSERT(image.rgb.size() == static_cast<size_t>(image.height) * static_cast<size_t>(image.width) * 3);
  const std::vector<uint8_t> bytes = encode_png(image.rgb.data(), image.height, image.width);
  AtomicFile file(path);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

}  // namespace calibatt
