#include <algorithm>
#include <cstring>
#include <filesystem>
#include <new>

#include "base/error.h"
#include "io/ffmpeg.h"
#include "io/frame_names.h"
#include "io/mapped_file.h"
#include "io/video.h"

namespace calibatt {
namespace {

constexpr int64_t kMaxFrameBytes = int64_t{1} << 30;
constexpr int64_t kMaxVideoBytes = int64_t{64} << 30;  // decoded; more is a mistake or an attack

/// The demuxer's context, closed at the end.
struct Input {
  AVFormatContext* context = nullptr;
  ~Input() { avformat_close_input(&context); }
};

class Decoder {
 public:
  explicit Decoder(const std::string& path) : path_(path) {
    check(avformat_open_input(&input_.context, ("file:" + path).c_str(), nullptr, nullptr));
    check(avformat_find_stream_info(input_.context, nullptr));
    const AVCodec* codec = nullptr;
    stream_ = av_find_best_stream(input_.context, AVMEDIA_TYPE_VIDEO, -1, -1, &codec, 0);
    if (stream_ < 0 || codec == nullptr) fail("no video that this FFmpeg decodes");
    codec_.reset(avcodec_alloc_context3(codec));
    if (!codec_) throw std::bad_alloc();
    check(avcodec_parameters_to_context(codec_.get(), input_.context->streams[stream_]->codecpar));
    check(avcodec_open2(codec_.get(), codec, nullptr));
  }

  void read(VideoFrames& video) {
    const ffmpeg::Packet packet = ffmpeg::make_packet();
    const ffmpeg::Frame frame(av_frame_alloc());
    if (!frame) throw std::bad_alloc();
    bool more = true;
    while (more) {
      const int code = av_read_frame(input_.context, packet.get());
      if (code == AVERROR_EOF) {
        more = false;
        check(avcodec_send_packet(codec_.get(), nullptr));
      } else {
        check(code);
        const bool ours = packet->stream_index == stream_;
        const int sent = ours ? avcodec_send_packet(codec_.get(), packet.get()) : 0;
        av_packet_unref(packet.get());
        check(sent);
        if (!ours) continue;
      }
      while (true) {
        const int received = avcodec_receive_frame(codec_.get(), frame.get());
        if (received == AVERROR(EAGAIN) || received == AVERROR_EOF) break;
        check(received);
        append(*frame, video);
        av_frame_unref(frame.get());
      }
    }
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw Error(ErrorKind::kFormat, path_ + ": cannot be read as a video: " + reason);
  }
  void check(int code) const {
    if (code < 0) fail(ffmpeg::message(code));
  }

  void append(const AVFrame& frame, VideoFrames& video) {
    const auto format = static_cast<AVPixelFormat>(frame.format);
    if (frame.width <= 0 || frame.height <= 0 || int64_t{3} * frame.width * frame.height > kMaxFrameBytes) {
      fail("its pictures are of an impossible size");
    }
    if (video.frames == 0) {
      video.width = frame.width;
      video.height = frame.height;
    } else if (frame.width != video.width || frame.height != video.height) {
      fail("its pictures change their size");
    }
    if (static_cast<int64_t>(video.rgb.size() + video.frame_bytes()) > kMaxVideoBytes) fail("too long");
    if (!scaler_ || format != format_) {
      format_ = format;
      // An unmarked video is in BT.601, as FFmpeg and most players take it.
      const AVColorSpace colorspace = frame.colorspace == AVCOL_SPC_UNSPECIFIED || frame.colorspace == AVCOL_SPC_RGB
                                          ? AVCOL_SPC_SMPTE170M
                                          : frame.colorspace;
      scaler_ = ffmpeg::make_scaler(frame.width, frame.height, format, AV_PIX_FMT_RGB24, colorspace,
                                    frame.color_range == AVCOL_RANGE_JPEG);
    }
    const size_t offset = video.rgb.size();
    video.rgb.resize(offset + video.frame_bytes());
    uint8_t* target = video.rgb.data() + offset;
    const int stride = video.width * 3;
    if (format == AV_PIX_FMT_RGB24) {
      for (int y = 0; y < video.height; ++y) {
        std::memcpy(target + static_cast<ptrdiff_t>(y) * stride,
                    frame.data[0] + static_cast<ptrdiff_t>(y) * frame.linesize[0], static_cast<size_t>(stride));
      }
    } else {
      sws_scale(scaler_.get(), frame.data, frame.linesize, 0, video.height, &target, &stride);
    }
    ++video.frames;
  }

  std::string path_;
  Input input_;
  int stream_ = -1;
  ffmpeg::CodecContext codec_;
  ffmpeg::Scaler scaler_;
  AVPixelFormat format_ = AV_PIX_FMT_NONE;
};

}  // namespace

VideoFrames read_video(const std::string& path) {
  ffmpeg::silence();
  VideoFrames video;
  if (path.ends_with(".png") && !std::filesystem::exists(path)) {
    // The same names as write_video's.
    const FrameNames names(path);
    for (int i = 0; std::filesystem::exists(names.name(i)); ++i) Decoder(names.name(i)).read(video);
    if (video.frames == 0) {
      throw Error(ErrorKind::kNotFound, path + ": no such file, and no " + names.name(0) + "; check the path");
    }
    return video;
  }
  MappedFile::open(path);  // says precisely what is wrong with a path
  Decoder(path).read(video);
  if (video.frames == 0) throw Error(ErrorKind::kFormat, path + ": holds no pictures");
  return video;
}

}  // namespace calibatt
