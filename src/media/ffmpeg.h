#pragma once

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
}

#include <memory>
#include <string>

// Ownership and conversions shared by the reader and the writers; only they include this.
namespace calibatt::ffmpeg {

struct Deleter {
  void operator()(AVCodecContext* pointer) const { avcodec_free_context(&pointer); }
  void operator()(AVFrame* pointer) const { av_frame_free(&pointer); }
  void operator()(AVPacket* pointer) const { av_packet_free(&pointer); }
  void operator()(SwsContext* pointer) const { sws_freeContext(pointer); }
  void operator()(AVDictionary* pointer) const { av_dict_free(&pointer); }
};
using CodecContext = std::unique_ptr<AVCodecContext, Deleter>;
using Frame = std::unique_ptr<AVFrame, Deleter>;
using Packet = std::unique_ptr<AVPacket, Deleter>;
using Scaler = std::unique_ptr<SwsContext, Deleter>;

std::string message(int code);  ///< text of an AVERROR value
void silence();                 ///< FFmpeg writes to stderr by itself; a library must not. Cheap to call again.

/// A frame with its own buffers. Throws std::bad_alloc.
Frame make_frame(AVPixelFormat format, int width, int height);
Packet make_packet();

/// Converts between RGB24 and another format of the same size. `colorspace` is the one of the format that is not RGB.
Scaler make_scaler(int width, int height, AVPixelFormat from, AVPixelFormat to, AVColorSpace colorspace,
                   bool full_range);

}  // namespace calibatt::ffmpeg
