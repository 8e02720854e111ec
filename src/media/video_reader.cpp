#include "media/video_reader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <new>
#include <string_view>

#include "base/error.h"
#include "calibatt/video.h"
#include "io/input_file.h"
#include "io/output_target.h"
#include "media/ffmpeg.h"
#include "media/frame_names.h"

namespace calibatt {
namespace {

constexpr int64_t kMaxFrameBytes = int64_t{1} << 28;   // 9,000 × 9,000 pixels; more is a mistake or an attack
constexpr int64_t kMaxVideoBytes = int64_t{64} << 30;  // of a video that is held decoded as a whole

// FFmpeg's names of the containers that are read. Each holds its frames itself. Playlists and scripts (hls, dash,
// concat, image2, …) name further files, which nobody asked us to open.
constexpr const char* kDemuxers =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,png_pipe,webp_pipe,jpeg_pipe,ivf,mpegts,mpeg,ogg,flv,"
    "yuv4mpegpipe,h264,hevc";

/// From FFmpeg's display matrix (libavutil/display.h), whose lines are what x and y become. Turns by other angles are
/// no camera's.
PictureTurn turn_of(const AVFrame& frame) {
  const AVFrameSideData* side = av_frame_get_side_data(&frame, AV_FRAME_DATA_DISPLAYMATRIX);
  if (side == nullptr) return {};
  const auto* matrix = reinterpret_cast<const int32_t*>(side->data);
  const auto sign = [](int32_t value) { return value > 0 ? 1 : value < 0 ? -1 : 0; };
  const PictureTurn turn{sign(matrix[0]), sign(matrix[3]), sign(matrix[1]), sign(matrix[4])};
  const bool straight = turn.x_of_x != 0 && turn.y_of_y != 0 && turn.x_of_y == 0 && turn.y_of_x == 0,
             across = turn.x_of_x == 0 && turn.y_of_y == 0 && turn.x_of_y != 0 && turn.y_of_x != 0;
  return straight || across ? turn : PictureTurn();
}

/// Where a camera's notes stand before the picture, FFmpeg goes by the name, and takes the file for one of a numbered
/// row, which is not allowed here.
bool is_jpeg(const InputFile& file) {
  std::array<char, 3> first{};
  if (file.size_bytes() < first.size()) return false;
  file.read_at(0, first);
  return std::string_view(first.data(), first.size()) == "\xff\xd8\xff";
}

/// Pixels of 16 bits a number, big-endian, as PNG files have them. They are converted here, since FFmpeg's scaler has
/// ways of its own to round them where libpng and Pillow take the high byte.
struct DeepFormat {
  AVPixelFormat format;
  int numbers, colors;  ///< of a pixel; behind the colours stands alpha
};
constexpr DeepFormat kDeepFormats[] = {
    {AV_PIX_FMT_GRAY16BE, 1, 1}, {AV_PIX_FMT_YA16BE, 2, 1}, {AV_PIX_FMT_RGB48BE, 3, 3}, {AV_PIX_FMT_RGBA64BE, 4, 3}};

const DeepFormat* deep_format(AVPixelFormat format) {
  const auto* found = std::ranges::find(kDeepFormats, format, &DeepFormat::format);
  return found == std::end(kDeepFormats) ? nullptr : found;
}

void convert_deep(const AVFrame& frame, const DeepFormat& deep, DeepGrey grey, uint8_t* target) {
  constexpr int kColors = 3, kBytes = 2;
  const bool clipped = grey == DeepGrey::kClipped && deep.colors == 1;
  for (int y = 0; y < frame.height; ++y) {
    const uint8_t* pixel = frame.data[0] + static_cast<ptrdiff_t>(y) * frame.linesize[0];
    for (int x = 0; x < frame.width; ++x, pixel += static_cast<ptrdiff_t>(kBytes) * deep.numbers) {
      for (int color = 0; color < kColors; ++color) {
        const uint8_t* number = pixel + static_cast<ptrdiff_t>(kBytes) * (deep.colors == 1 ? 0 : color);
        *target++ = !clipped ? number[0] : number[0] > 0 ? uint8_t{255} : number[1];
      }
    }
  }
}

/// The demuxer's context, closed at the end.
struct OpenVideo {
  AVFormatContext* context = nullptr;
  ~OpenVideo() { avformat_close_input(&context); }
};

}  // namespace

/// One file.
class VideoReader::Decoder {
 public:
  explicit Decoder(const std::string& path) : path_(path), packet_(ffmpeg::make_packet()), frame_(av_frame_alloc()) {
    if (!frame_) throw std::bad_alloc();
    const InputFile file(path);  // says precisely what is wrong with a path
    open_container(is_jpeg(file) ? av_find_input_format("jpeg_pipe") : nullptr);
    check(avformat_find_stream_info(input_.context, nullptr));
    stream_ = av_find_best_stream(input_.context, AVMEDIA_TYPE_VIDEO, -1, -1, nullptr, 0);
    if (stream_ < 0) fail("no video that this FFmpeg decodes");
    const AVCodecParameters* pictures = input_.context->streams[stream_]->codecpar;
    const AVCodec* codec = avcodec_find_decoder(pictures->codec_id);
    if (codec == nullptr) fail("no video that this FFmpeg decodes");
    check_size(pictures->width, pictures->height);
    codec_.reset(avcodec_alloc_context3(codec));
    if (!codec_) throw std::bad_alloc();
    check(avcodec_parameters_to_context(codec_.get(), pictures));
    codec_->max_pixels = kMaxFrameBytes / 3;
    check(avcodec_open2(codec_.get(), codec, nullptr));
  }

  /// The next frame in FFmpeg's own format, valid until the next call; nullptr at the end.
  const AVFrame* next() {
    while (true) {
      const int received = avcodec_receive_frame(codec_.get(), frame_.get());
      if (received == AVERROR_EOF) return nullptr;
      if (received != AVERROR(EAGAIN)) {
        check(received);
        return frame_.get();
      }
      send_packet();
    }
  }

  void check_size(int width, int height) const {
    if (int64_t{3} * width * height <= kMaxFrameBytes) return;
    fail("is of " + std::to_string(width) + "×" + std::to_string(height) + " pixels, and at most " +
         std::to_string(kMaxFrameBytes / 3'000'000) + " million are read; make it smaller");
  }

  [[noreturn]] void fail(const std::string& reason) const {
    throw Error(ErrorKind::kFormat, path_ + ": cannot be read as a video or picture: " + reason);
  }

  /// `frame` as RGB.
  void convert(const AVFrame& frame, DeepGrey deep_grey, uint8_t* target) {
    const auto format = static_cast<AVPixelFormat>(frame.format);
    const int stride = frame.width * 3;
    if (format == AV_PIX_FMT_RGB24) {
      for (int y = 0; y < frame.height; ++y) {
        std::memcpy(target + static_cast<ptrdiff_t>(y) * stride,
                    frame.data[0] + static_cast<ptrdiff_t>(y) * frame.linesize[0], static_cast<size_t>(stride));
      }
      return;
    }
    if (const DeepFormat* deep = deep_format(format)) return convert_deep(frame, *deep, deep_grey, target);
    if (!scaler_ || format != format_) {
      format_ = format;
      // An unmarked video is in BT.601, as FFmpeg and most players take it.
      const AVColorSpace colorspace = frame.colorspace == AVCOL_SPC_UNSPECIFIED || frame.colorspace == AVCOL_SPC_RGB
                                          ? AVCOL_SPC_SMPTE170M
                                          : frame.colorspace;
      if (sws_isSupportedInput(format) == 0) fail("its pixels are of a kind that this FFmpeg does not convert");
      scaler_ = ffmpeg::make_scaler(frame.width, frame.height, format, AV_PIX_FMT_RGB24, colorspace,
                                    frame.color_range == AVCOL_RANGE_JPEG);
    }
    sws_scale(scaler_.get(), frame.data, frame.linesize, 0, frame.height, &target, &stride);
  }

 private:
  using InputFormat = decltype(av_find_input_format(""));  // const since FFmpeg 5
  /// format: null, FFmpeg looks for itself.
  void open_container(InputFormat format) {
    AVDictionary* entries = nullptr;
    av_dict_set(&entries, "format_whitelist", kDemuxers, 0);
    av_dict_set(&entries, "protocol_whitelist", "file", 0);
    const int code = avformat_open_input(&input_.context, ("file:" + path_).c_str(), format, &entries);
    av_dict_free(&entries);
    if (code == AVERROR(EINVAL) || code == AVERROR_INVALIDDATA) {
      fail(
          "not one of the containers that are read (mp4, mov, webm, mkv, avi, gif, apng, png, jpeg, webp and a few "
          "more; no "
          "playlists)");
    }
    check(code);
  }

  void send_packet() {
    const int code = av_read_frame(input_.context, packet_.get());
    if (code == AVERROR_EOF) return check(avcodec_send_packet(codec_.get(), nullptr));
    check(code);
    const int sent = packet_->stream_index == stream_ ? avcodec_send_packet(codec_.get(), packet_.get()) : 0;
    av_packet_unref(packet_.get());
    check(sent);
  }

  void check(int code) const {
    // The second is what FFmpeg says of strips whose rows, with its margins, are more than its numbers hold.
    if (code == AVERROR_INVALIDDATA || code == AVERROR(EINVAL)) {
      fail("its content is damaged, of a kind that this FFmpeg does not know, or a strip of millions of pixels by few");
    }
    if (code < 0) fail(ffmpeg::message(code));
  }

  std::string path_;
  OpenVideo input_;
  int stream_ = -1;
  ffmpeg::CodecContext codec_;
  ffmpeg::Packet packet_;
  ffmpeg::Frame frame_;
  ffmpeg::Scaler scaler_;
  AVPixelFormat format_ = AV_PIX_FMT_NONE;
};

VideoReader::VideoReader(const std::string& path, DeepGrey deep_grey)
    : path_(path), deep_grey_(deep_grey), files_{path} {
  ffmpeg::silence();
  if (lower_extension(path) == ".png" && !path_exists(path)) {
    // The same names as write_video's.
    const FrameNames names(path);
    files_.clear();
    for (int i = 0; path_exists(names.name(i)); ++i) files_.push_back(names.name(i));
    if (files_.empty()) {
      throw Error(ErrorKind::kNotFound, path + ": no such file, and no " + names.name(0) + "; check the path");
    }
  }
  open_next_file();
}

VideoReader::~VideoReader() = default;

bool VideoReader::open_next_file() {
  decoder_.reset();
  if (next_file_ == files_.size()) return false;
  decoder_ = std::make_unique<Decoder>(files_[next_file_++]);
  return true;
}

bool VideoReader::next(std::vector<uint8_t>& rgb) {
  while (decoder_) {
    const AVFrame* frame = decoder_->next();
    if (frame == nullptr) {
      open_next_file();
      continue;
    }
    if (frame->width <= 0 || frame->height <= 0) decoder_->fail("its pictures are of an impossible size");
    decoder_->check_size(frame->width, frame->height);
    if (height_ != 0 && (frame->width != width_ || frame->height != height_)) {
      decoder_->fail("its pictures change their size");
    }
    width_ = frame->width;
    height_ = frame->height;
    rgb.resize(static_cast<size_t>(width_) * static_cast<size_t>(height_) * 3);
    decoder_->convert(*frame, deep_grey_, rgb.data());
    turn_ = turn_of(*frame);
    return true;
  }
  if (height_ == 0) throw Error(ErrorKind::kFormat, path_ + ": holds no pictures");
  return false;
}

VideoFrames read_video(const std::string& path) {
  VideoReader reader(path);
  VideoFrames video;
  for (std::vector<uint8_t> rgb; reader.next(rgb); ++video.frames) {
    if (static_cast<int64_t>(video.rgb.size() + rgb.size()) > kMaxVideoBytes) {
      throw Error(ErrorKind::kFormat, path + ": cannot be read as a video or picture: too long");
    }
    video.rgb.insert(video.rgb.end(), rgb.begin(), rgb.end());
    video.height = reader.height();
    video.width = reader.width();
  }
  return video;
}

}  // namespace calibatt
