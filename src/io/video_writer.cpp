#include <algorithm>
#include <cmath>
#include <filesystem>
#include <new>

#include "base/error.h"
#include "base/thread_pool.h"
#include "io/atomic_file.h"
#include "io/ffmpeg.h"
#include "io/frame_names.h"
#include "io/image.h"
#include "io/video.h"

namespace calibatt {
namespace {

/// How one file extension is written.
struct Container {
  const char* extension;
  const char* muxer;
  const char* encoder;
  AVPixelFormat format;
  const char* options;      ///< of the encoder, key=value:…
  const char* mux_options;  ///< of the muxer
};

// Quality: near transparent for generated video, which is looked at closely and compared; crf 17 gives about 40 dB.
constexpr Container kContainers[] = {
    {".mp4", "mp4", "libx264", AV_PIX_FMT_YUV420P, "crf=17:preset=medium", "movflags=+faststart"},
    {".webm", "webm", "libvpx-vp9", AV_PIX_FMT_YUV420P, "crf=24:b=0:deadline=good:cpu-used=4:row-mt=1", ""},
    {".webp", "webp", "libwebp_anim", AV_PIX_FMT_BGRA, "quality=90:compression_level=4", "loop=0"},
};

std::string lower_extension(const std::string& path) {
  std::string extension = std::filesystem::path(path).extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char character) { return static_cast<char>(std::tolower(character)); });
  return extension;
}

struct Dictionary {
  AVDictionary* entries = nullptr;
  explicit Dictionary(const char* text) {
    const int code = av_dict_parse_string(&entries, text, "=", ":", 0);
    CALIBATT_ASSERT(code >= 0);
  }
  ~Dictionary() { av_dict_free(&entries); }
  Dictionary(const Dictionary&) = delete;
};

/// An open muxer on a file. Its writes are buffered, so an error may show up at any later call.
class Muxer {
 public:
  Muxer(const Container& container, const AtomicFile& file, const std::string& path) : path_(path) {
    check(avformat_alloc_output_context2(&context_, nullptr, container.muxer, file.temporary_path().c_str()));
    const int code = avio_open(&context_->pb, file.temporary_path().c_str(), AVIO_FLAG_WRITE);
    if (code < 0) {
      avformat_free_context(context_);
      check(code);
    }
  }
  ~Muxer() {
    avio_closep(&context_->pb);
    avformat_free_context(context_);
  }
  Muxer(const Muxer&) = delete;

  AVFormatContext* get() { return context_; }
  void close() { check(avio_closep(&context_->pb)); }

  void check(int code) const {
    if (code >= 0) return;
    const bool full = code == AVERROR(ENOSPC) || code == AVERROR(EFBIG) || code == AVERROR(EDQUOT);
    throw Error(ErrorKind::kIo,
                path_ + ": cannot be written: " + ffmpeg::message(code) +
                    (full ? "; free some space or choose another folder (nothing was left behind)" : ""));
  }

 private:
  std::string path_;
  AVFormatContext* context_ = nullptr;
};

AVRational frame_rate(double fps) {
  // 23.976… and its like are multiples of 1000/1001; everything else is a short fraction.
  return av_d2q(fps, 1001000);
}

ffmpeg::CodecContext open_encoder(const Container& container, const VideoFrames& video, double fps, bool global_header,
                                  const std::string& path) {
  const AVCodec* codec = avcodec_find_encoder_by_name(container.encoder);
  if (codec == nullptr) {
    throw Error(ErrorKind::kUsage, path + ": this FFmpeg has no " + container.encoder +
                                       " encoder; install a complete one, or write .png frames");
  }
  ffmpeg::CodecContext context(avcodec_alloc_context3(codec));
  if (!context) throw std::bad_alloc();
  context->width = video.width;
  context->height = video.height;
  context->pix_fmt = container.format;
  context->framerate = frame_rate(fps);
  context->time_base = av_inv_q(context->framerate);
  context->thread_count = std::min(num_threads(), 16);
  if (container.format == AV_PIX_FMT_YUV420P) {
    context->colorspace = AVCOL_SPC_BT709;
    context->color_primaries = AVCOL_PRI_BT709;
    context->color_trc = AVCOL_TRC_BT709;
    context->color_range = AVCOL_RANGE_MPEG;
  }
  if (global_header) context->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  Dictionary options(container.options);
  const int code = avcodec_open2(context.get(), codec, &options.entries);
  if (code < 0) {
    throw Error(ErrorKind::kUsage, path + ": " + std::to_string(video.width) + "×" + std::to_string(video.height) +
                                       " at " + std::to_string(fps) + " frames per second cannot be encoded by " +
                                       container.encoder + ": " + ffmpeg::message(code));
  }
  CALIBATT_ASSERT(av_dict_count(options.entries) == 0);  // what is left over was not understood
  return context;
}

/// Drains the encoder into the muxer.
void write_packets(AVCodecContext* encoder, Muxer& muxer, const AVStream* stream, AVPacket* packet) {
  while (true) {
    const int code = avcodec_receive_packet(encoder, packet);
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
    muxer.check(code);
    if (packet->duration == 0) packet->duration = 1;  // libx264 leaves it out; the last frame would have no length
    av_packet_rescale_ts(packet, encoder->time_base, stream->time_base);
    packet->stream_index = stream->index;
    muxer.check(av_interleaved_write_frame(muxer.get(), packet));
  }
}

void write_container(const Container& container, const VideoFrames& video, double fps, const std::string& path) {
  if (container.format == AV_PIX_FMT_YUV420P && (video.width % 2 != 0 || video.height % 2 != 0)) {
    throw Error(ErrorKind::kUsage, path + ": " + container.extension + " needs an even width and height, not " +
                                       std::to_string(video.width) + "×" + std::to_string(video.height) +
                                       "; write .webp or .png");
  }
  AtomicFile file(path);
  Muxer muxer(container, file, path);
  const bool global_header = (muxer.get()->oformat->flags & AVFMT_GLOBALHEADER) != 0;
  const ffmpeg::CodecContext encoder = open_encoder(container, video, fps, global_header, path);
  AVStream* stream = avformat_new_stream(muxer.get(), nullptr);
  if (stream == nullptr) throw std::bad_alloc();
  stream->time_base = encoder->time_base;
  stream->avg_frame_rate = encoder->framerate;
  muxer.check(avcodec_parameters_from_context(stream->codecpar, encoder.get()));
  {
    Dictionary options(container.mux_options);
    muxer.check(avformat_write_header(muxer.get(), &options.entries));
  }

  const ffmpeg::Scaler scaler =
      ffmpeg::make_scaler(video.width, video.height, AV_PIX_FMT_RGB24, container.format, AVCOL_SPC_BT709, false);
  const ffmpeg::Packet packet = ffmpeg::make_packet();
  for (int i = 0; i < video.frames; ++i) {
    const ffmpeg::Frame frame =
        ffmpeg::make_frame(container.format, video.width, video.height);  // encoders keep frames
    const uint8_t* source = video.rgb.data() + static_cast<size_t>(i) * video.frame_bytes();
    const int stride = video.width * 3;
    sws_scale(scaler.get(), &source, &stride, 0, video.height, frame->data, frame->linesize);
    frame->pts = i;
    frame->pkt_duration = 1;
    muxer.check(avcodec_send_frame(encoder.get(), frame.get()));
    write_packets(encoder.get(), muxer, stream, packet.get());
  }
  muxer.check(avcodec_send_frame(encoder.get(), nullptr));
  write_packets(encoder.get(), muxer, stream, packet.get());
  muxer.check(av_write_trailer(muxer.get()));
  muxer.close();
  file.commit();
}

void write_frames(const VideoFrames& video, const std::string& path) {
  const FrameNames names(path);
  std::vector<AtomicFile> files;  // all complete before the first one becomes visible
  files.reserve(static_cast<size_t>(video.frames));
  for (int i = 0; i < video.frames; ++i) {
    const uint8_t* rgb = video.rgb.data() + static_cast<size_t>(i) * video.frame_bytes();
    const std::vector<uint8_t> png = encode_png(rgb, video.height, video.width);
    files.emplace_back(names.name(i)).write(png.data(), png.size());
    files.back().finish();
  }
  for (AtomicFile& file : files) file.commit();
}

}  // namespace

void write_video(const VideoFrames& video, double fps, const std::string& path) {
  CALIBATT_ASSERT(video.frames > 0 && video.height > 0 && video.width > 0);
  CALIBATT_ASSERT(video.rgb.size() == static_cast<size_t>(video.frames) * video.frame_bytes());
  if (!(fps > 0) || fps > 1000) {
    throw Error(ErrorKind::kUsage, "frames per second: " + std::to_string(fps) + " is out of range; give 1 to 1000");
  }
  ffmpeg::silence();
  const std::string extension = lower_extension(path);
  if (extension == ".png") return write_frames(video, path);
  for (const Container& container : kContainers) {
    if (extension == container.extension) return write_container(container, video, fps, path);
  }
  throw Error(ErrorKind::kUsage, path +
                                     ": videos are written as .mp4, .webm, .webp or .png (numbered frames); use one of "
                                     "these extensions");
}

}  // namespace calibatt
