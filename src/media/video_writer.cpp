#include "media/video_writer.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <new>
#include <string_view>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibatt/video.h"
#include "io/atomic_file.h"
#include "media/ffmpeg.h"
#include "media/frame_names.h"
#include "media/image.h"

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
    // Not exact to the bit, the muxer would number tracks at random.
    {".webm", "webm", "libvpx-vp9", AV_PIX_FMT_YUV420P, "crf=24:b=0:deadline=good:cpu-used=4:row-mt=1",
     "fflags=+bitexact"},
    {".webp", "webp", "libwebp_anim", AV_PIX_FMT_BGRA, "quality=90:compression_level=4", "loop=0"},
};

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
    const std::string url = "file:" + file.temporary_path();
    check(avformat_alloc_output_context2(&context_, nullptr, container.muxer, url.c_str()));
    const int code = avio_open(&context_->pb, url.c_str(), AVIO_FLAG_WRITE);
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

ffmpeg::CodecContext open_encoder(const Container& container, int height, int width, double fps, bool global_header,
                                  const std::string& path) {
  const AVCodec* codec = avcodec_find_encoder_by_name(container.encoder);
  if (codec == nullptr) {
    throw Error(ErrorKind::kUsage, path + ": this FFmpeg has no " + container.encoder +
                                       " encoder; install a complete one, or write .png frames");
  }
  ffmpeg::CodecContext context(avcodec_alloc_context3(codec));
  if (!context) throw std::bad_alloc();
  context->width = width;
  context->height = height;
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
  // Where rows are no multiple of 128 pixels, libx264's AVX-512 code for its rate control reads memory that nobody
  // wrote (seen in core 164): the same frames then give other files. Without it they give those of other machines.
  if (container.encoder == std::string_view("libx264") && __builtin_cpu_supports("avx512f")) {
    av_dict_set(&options.entries, "x264-params", "asm=AVX2", 0);
  }
  const int code = avcodec_open2(context.get(), codec, &options.entries);
  if (code < 0) {
    throw Error(ErrorKind::kUsage, path + ": " + std::to_string(width) + "×" + std::to_string(height) + " at " +
                                       std::to_string(fps) + " frames per second cannot be encoded by " +
                                       container.encoder + ": " + ffmpeg::message(code));
  }
  CALIBATT_ASSERT(av_dict_count(options.entries) == 0);  // what is left over was not understood
  return context;
}

}  // namespace

class VideoWriter::Sink {
 public:
  virtual ~Sink() = default;
  virtual void add(const uint8_t* rgb) = 0;
  virtual void finish() = 0;
};

namespace {

/// One file of a container.
class ContainerSink : public VideoWriter::Sink {
 public:
  ContainerSink(const Container& container, const std::string& path, int height, int width, double fps)
      : container_(container), height_(height), width_(width), file_(path), muxer_(container, file_, path) {
    const bool global_header = (muxer_.get()->oformat->flags & AVFMT_GLOBALHEADER) != 0;
    encoder_ = open_encoder(container, height, width, fps, global_header, path);
    stream_ = avformat_new_stream(muxer_.get(), nullptr);
    if (stream_ == nullptr) throw std::bad_alloc();
    stream_->time_base = encoder_->time_base;
    stream_->avg_frame_rate = encoder_->framerate;
    muxer_.check(avcodec_parameters_from_context(stream_->codecpar, encoder_.get()));
    Dictionary options(container.mux_options);
    muxer_.check(avformat_write_header(muxer_.get(), &options.entries));
    scaler_ = ffmpeg::make_scaler(width, height, AV_PIX_FMT_RGB24, container.format, AVCOL_SPC_BT709, false);
  }

  void add(const uint8_t* rgb) override {
    const ffmpeg::Frame frame = ffmpeg::make_frame(container_.format, width_, height_);  // encoders keep frames
    const int stride = width_ * 3;
    sws_scale(scaler_.get(), &rgb, &stride, 0, height_, frame->data, frame->linesize);
    frame->pts = frames_++;
    frame->pkt_duration = 1;
    send(frame.get());
  }

  void finish() override {
    send(nullptr);
    muxer_.check(av_write_trailer(muxer_.get()));
    muxer_.close();
    file_.commit();
  }

 private:
  /// A frame, or nullptr for the end, to the encoder; what comes out of it to the muxer.
  void send(const AVFrame* frame) {
    muxer_.check(avcodec_send_frame(encoder_.get(), frame));
    while (true) {
      const int code = avcodec_receive_packet(encoder_.get(), packet_.get());
      if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
      muxer_.check(code);
      if (packet_->duration == 0) packet_->duration = 1;  // libx264 leaves it out; the last frame would have no length
      av_packet_rescale_ts(packet_.get(), encoder_->time_base, stream_->time_base);
      packet_->stream_index = stream_->index;
      muxer_.check(av_interleaved_write_frame(muxer_.get(), packet_.get()));
    }
  }

  const Container& container_;
  int height_, width_;
  AtomicFile file_;
  Muxer muxer_;
  ffmpeg::CodecContext encoder_;
  AVStream* stream_ = nullptr;
  ffmpeg::Scaler scaler_;
  ffmpeg::Packet packet_ = ffmpeg::make_packet();
  int64_t frames_ = 0;
};

/// Numbered PNG files; all are complete before the first one becomes visible.
class FramesSink : public VideoWriter::Sink {
 public:
  FramesSink(const std::string& path, int height, int width) : names_(path), height_(height), width_(width) {
    resolve_output(names_.name(0));
  }

  void add(const uint8_t* rgb) override {
    const std::vector<uint8_t> png = encode_png(rgb, height_, width_);
    files_.emplace_back(names_.name(static_cast<int>(files_.size()))).write(png.data(), png.size());
    files_.back().finish();
  }

  void finish() override {
    // The first frame last: where it is, all are.
    for (auto file = files_.rbegin(); file != files_.rend(); ++file) file->commit();
  }

 private:
  FrameNames names_;
  int height_, width_;
  std::deque<AtomicFile> files_;
};

std::unique_ptr<VideoWriter::Sink> make_sink(const std::string& path, int height, int width, double fps) {
  if (!(fps > 0) || fps > 1000) {
    throw Error(ErrorKind::kUsage, "frames per second: " + std::to_string(fps) + " is out of range; give 1 to 1000");
  }
  ffmpeg::silence();
  const std::string extension = lower_extension(path);
  if (extension == ".png") return std::make_unique<FramesSink>(path, height, width);
  for (const Container& container : kContainers) {
    if (extension != container.extension) continue;
    if (container.format == AV_PIX_FMT_YUV420P && (width % 2 != 0 || height % 2 != 0)) {
      throw Error(ErrorKind::kUsage, path + ": " + container.extension + " needs an even width and height, not " +
                                         std::to_string(width) + "×" + std::to_string(height) +
                                         "; write .webp or .png");
    }
    return std::make_unique<ContainerSink>(container, path, height, width, fps);
  }
  throw Error(ErrorKind::kUsage, path +
                                     ": videos are written as .mp4, .webm, .webp or .png (numbered frames); use one of "
                                     "these extensions");
}

}  // namespace

std::vector<std::string> video_extensions() {
  std::vector<std::string> extensions;
  for (const Container& container : kContainers) extensions.emplace_back(container.extension);
  extensions.emplace_back(".png");
  return extensions;
}

VideoWriter::VideoWriter(const std::string& path, int height, int width, double fps) {
  CALIBATT_ASSERT(height > 0 && width > 0);
  sink_ = make_sink(path, height, width, fps);
}

VideoWriter::~VideoWriter() = default;

void VideoWriter::add(const uint8_t* rgb) {
  sink_->add(rgb);
}

void VideoWriter::finish() {
  sink_->finish();
}

void write_video(const VideoFrames& video, double fps, const std::string& path) {
  CALIBATT_ASSERT(video.frames > 0);
  CALIBATT_ASSERT(video.rgb.size() == static_cast<size_t>(video.frames) * video.frame_bytes());
  VideoWriter writer(path, video.height, video.width, fps);
  for (int i = 0; i < video.frames; ++i) writer.add(video.rgb.data() + static_cast<size_t>(i) * video.frame_bytes());
  writer.finish();
}

std::string written_names(const std::string& path, int frames) {
  if (lower_extension(path) != ".png" || frames < 1) return path;
  const FrameNames names(path);
  return names.name(0) + (frames > 1 ? " … " + names.name(frames - 1) : "");
}

std::optional<uint64_t> written_bytes(const std::string& path, int frames) {
  const bool numbered = lower_extension(path) == ".png";
  uint64_t total = 0;
  for (int i = 0; i < (numbered ? frames : 1); ++i) {
    struct stat status {};
    const std::string file = numbered ? FrameNames(path).name(i) : path;
    if (stat(file.c_str(), &status) == 0 && S_ISREG(status.st_mode)) total += static_cast<uint64_t>(status.st_size);
    if (i == 0 && total == 0) return std::nullopt;
  }
  return total;
}

}  // namespace calibatt
