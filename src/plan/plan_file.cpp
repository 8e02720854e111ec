#include "plan/plan_file.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "io/fingerprint.h"
#include "io/json_config.h"
#include "io/safetensors.h"

namespace calibatt {
namespace {

using Json = nlohmann::json;

constexpr char kFormatName[] = "calibatt.plan";
constexpr int64_t kMaxNumber = int64_t{1} << 24;  // of any count in the JSON; Plan and AttentionGeometry look closer
constexpr uint8_t kHasIntervals = 1, kAnchored = 2;

// ---- unsigned numbers in the narrowest type that holds them ---------------------------------------------------------

Tensor narrowed(const std::vector<uint32_t>& values, std::vector<int64_t> shape) {
  const uint32_t largest = values.empty() ? 0 : *std::max_element(values.begin(), values.end());
  const auto stored_as = [&]<class T>(DType dtype, T) {
    Tensor tensor(dtype, std::move(shape));
    CALIBATT_ASSERT(tensor.size() == static_cast<int64_t>(values.size()));
    std::transform(values.begin(), values.end(), tensor.data<T>(),
                   [](uint32_t value) { return static_cast<T>(value); });
    return tensor;
  };
  if (largest <= UINT8_MAX) return stored_as(DType::kU8, uint8_t{});
  if (largest <= UINT16_MAX) return stored_as(DType::kU16, uint16_t{});
  return stored_as(DType::kU32, uint32_t{});
}

// Reads such a tensor in place.
class UnsignedReader {
 public:
  UnsignedReader() = default;
  explicit UnsignedReader(Tensor tensor) : tensor_(std::move(tensor)), size_(tensor_.size()) {}
  int64_t size() const { return size_; }
  uint32_t operator[](int64_t i) const {
    CALIBATT_ASSERT(i >= 0 && i < size_);
    switch (tensor_.dtype()) {
      case DType::kU8:
        return tensor_.data<uint8_t>()[i];
      case DType::kU16:
        return tensor_.data<uint16_t>()[i];
      default:
        return tensor_.data<uint32_t>()[i];
    }
  }

 private:
  Tensor tensor_;
  int64_t size_ = 0;
};

// ---- the JSON text -------------------------------------------------------------------------------------------------

Json provenance_json(const PlanProvenance& provenance) {
  return {{"tool_version", provenance.tool_version},
          {"model_name", provenance.model_name},
          {"model_fingerprint", provenance.model_fingerprint},
          {"prompts_hash", provenance.prompts_hash},
          {"num_prompts", provenance.num_prompts},
          {"video_frames", provenance.video_frames},
          {"video_height", provenance.video_height},
          {"video_width", provenance.video_width},
          {"guidance_scale", provenance.guidance_scale},
          {"scheduler", provenance.scheduler},
          {"flow_shift", provenance.flow_shift},
          {"settings", provenance.settings}};
}

PlanProvenance parse_provenance(const JsonConfig& json) {
  const auto count = [&](const char* key) { return json.integer_in(key, 0, INT32_MAX); };
  PlanProvenance provenance;
  provenance.tool_version = json.string("tool_version");
  provenance.model_name = json.string("model_name");
  provenance.model_fingerprint = json.string("model_fingerprint");
  provenance.prompts_hash = json.string("prompts_hash");
  provenance.num_prompts = count("num_prompts");
  provenance.video_frames = count("video_frames");
  provenance.video_height = count("video_height");
  provenance.video_width = count("video_width");
  provenance.guidance_scale = json.number("guidance_scale");
  provenance.scheduler = json.string("scheduler");
  provenance.flow_shift = json.number("flow_shift");
  const JsonConfig settings = json.object("settings");
  for (const auto& [key, value] : settings.json().items()) provenance.settings[key] = settings.string(key);
  return provenance;
}

Json geometry_json(const AttentionGeometry& geometry) {
  return {{"frames", geometry.frames},
          {"height", geometry.height},
          {"width", geometry.width},
          {"text_tokens", geometry.text_tokens},
          {"heads", geometry.heads},
          {"head_dim", geometry.head_dim},
          {"block_q", geometry.block_q},
          {"block_k", geometry.block_k},
          {"token_order", geometry.order.to_string()}};
}

AttentionGeometry parse_geometry(const JsonConfig& json) {
  const auto count = [&](const char* key, int64_t min = 1) { return json.integer_in(key, min, kMaxNumber); };
  AttentionGeometry geometry;
  geometry.frames = count("frames");
  geometry.height = count("height");
  geometry.width = count("width");
  geometry.text_tokens = count("text_tokens", 0);
  geometry.heads = count("heads");
  geometry.head_dim = count("head_dim");
  geometry.block_q = count("block_q");
  geometry.block_k = count("block_k");
  try {
    geometry.order = TokenOrder::parse(json.string("token_order"));
    geometry.validate();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kFormat) throw;
    throw Error(ErrorKind::kFormat, json.where() + ": " + error.what());
  }
  return geometry;
}

// ---- tensors -------------------------------------------------------------------------------------------------------

// Latent rows that are anchors, in rising order; every frame has the same.
std::vector<uint32_t> anchor_row_numbers(const AttentionGeometry& geometry, int rows_per_frame) {
  AttentionGeometry one_column = geometry;  // one frame of one column: its tokens are the rows
  one_column.frames = one_column.width = 1;
  one_column.text_tokens = 0;
  one_column.order = TokenOrder::raster();
  const AnchorRows anchors = make_anchor_rows(one_column, rows_per_frame);
  return {anchors.query_tokens.begin(), anchors.query_tokens.end()};
}

Tensor f64_tensor(const std::vector<double>& values) {
  Tensor tensor(DType::kF64, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), tensor.data<double>());
  return tensor;
}

// The tensors of a file, taken out one by one; what nobody asked for is refused at the end.
class TensorReader {
 public:
  TensorReader(const std::map<std::string, Tensor>& tensors, std::string where)
      : tensors_(tensors), where_(std::move(where)) {}

  Error refused(const std::string& what) const { return Error(ErrorKind::kFormat, where_ + ": " + what); }

  // A dimension of -1 may have any size.
  Tensor take(const std::string& name, const std::vector<int64_t>& shape, std::initializer_list<DType> dtypes) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw refused("the tensor '" + name + "' is missing");
    const Tensor& tensor = found->second;
    bool fits = tensor.shape().size() == shape.size() &&
                std::find(dtypes.begin(), dtypes.end(), tensor.dtype()) != dtypes.end();
    std::string expected;
    for (const DType dtype : dtypes) expected += (expected.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    expected += " [";
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      fits = fits && (shape[axis] < 0 || tensor.shape()[axis] == shape[axis]);
      expected += (axis > 0 ? ", " : "") + (shape[axis] < 0 ? "any" : std::to_string(shape[axis]));
    }
    if (!fits) throw refused("the tensor '" + name + "' is " + tensor.describe() + ", expected " + expected + "]");
    ++num_taken_;
    return tensor;
  }
  UnsignedReader take_unsigned(const std::string& name, const std::vector<int64_t>& shape) {
    return UnsignedReader(take(name, shape, {DType::kU8, DType::kU16, DType::kU32}));
  }
  std::vector<double> take_f64(const std::string& name, int64_t size) {
    const Tensor tensor = take(name, {size}, {DType::kF64});
    return {tensor.data<double>(), tensor.data<double>() + tensor.size()};
  }
  // Numbers that follow from the geometry; they are in the file for readers that do not know how. They are made only
  // when the file holds as many of them.
  void expect(const std::string& name, int64_t size, const auto& make_values, const char* meaning) {
    const UnsignedReader stored = take_unsigned(name, {size});
    const auto values = make_values();
    for (int64_t i = 0; i < size; ++i) {
      const auto value = static_cast<uint32_t>(values[static_cast<size_t>(i)]);
      if (stored[i] != value) {
        throw refused("the tensor '" + name + "' is not " + meaning + ": number " + std::to_string(i) + " is " +
                      std::to_string(stored[i]) + ", expected " + std::to_string(value));
      }
    }
  }
  void finish() const {
    if (num_taken_ == tensors_.size()) return;
    throw refused("it holds " + std::to_string(tensors_.size()) + " tensors where this plan has " +
                  std::to_string(num_taken_));
  }

 private:
  const std::map<std::string, Tensor>& tensors_;
  std::string where_;
  size_t num_taken_ = 0;
};

// Hands out the packed rows of one head after another.
class IntervalReader {
 public:
  IntervalReader(UnsignedReader row_counts, UnsignedReader bounds, int num_key_blocks)
      : row_counts_(std::move(row_counts)), bounds_(std::move(bounds)), num_key_blocks_(num_key_blocks) {}

  BlockIntervals next(int num_query_blocks) {
    if (num_query_blocks > row_counts_.size() - row_)
      throw Error(ErrorKind::kFormat, "'interval_counts' has no more rows");
    std::vector<uint32_t> offsets{0};
    offsets.reserve(static_cast<size_t>(num_query_blocks) + 1);
    const int64_t left = bounds_.size() / 2 - interval_;
    int64_t count = 0;
    for (int r = 0; r < num_query_blocks; ++r) {
      count += row_counts_[row_++];
      if (count > left) throw Error(ErrorKind::kFormat, "'intervals' has no more rows");
      offsets.push_back(static_cast<uint32_t>(count));
    }
    if (count > UINT32_MAX) throw Error(ErrorKind::kFormat, "it has too many intervals");
    std::vector<BlockInterval> intervals;
    intervals.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i, ++interval_)
      intervals.push_back({bounds_[2 * interval_], bounds_[2 * interval_ + 1]});
    return BlockIntervals(num_key_blocks_, std::move(offsets), std::move(intervals));
  }
  bool at_end() const { return row_ == row_counts_.size() && 2 * interval_ == bounds_.size(); }

 private:
  UnsignedReader row_counts_, bounds_;
  int num_key_blocks_;
  int64_t row_ = 0, interval_ = 0;
};

void decode_heads(TensorReader& reader, Plan::Parts& parts) {
  const AttentionGeometry& geometry = parts.geometry;
  const int num_entries = *std::max_element(parts.step_entry.begin(), parts.step_entry.end()) + 1;
  const Tensor kinds = reader.take("head_kind", {num_entries, parts.num_layers, geometry.heads}, {DType::kU8});
  const uint8_t* kind = kinds.data<uint8_t>();
  const auto any = [&](uint8_t bit) {
    return std::any_of(kind, kind + kinds.size(), [bit](uint8_t k) { return k & bit; });
  };

  int num_packed_blocks = 0;
  if (any(kAnchored)) {
    if (parts.anchor_rows_per_frame < 1 || parts.anchor_rows_per_frame > geometry.height) {
      throw reader.refused("some heads are anchored, but anchor_rows_per_frame is " +
                           std::to_string(parts.anchor_rows_per_frame) + " for a latent height of " +
                           std::to_string(geometry.height));
    }
    reader.expect(
        "anchor_rows", parts.anchor_rows_per_frame,
        [&] { return anchor_row_numbers(geometry, parts.anchor_rows_per_frame); }, "the anchor rows of this geometry");
    const int num_anchor_tokens = geometry.frames * parts.anchor_rows_per_frame * geometry.width + geometry.text_tokens;
    num_packed_blocks = (num_anchor_tokens + geometry.block_q - 1) / geometry.block_q;
  }
  UnsignedReader counts, bounds;
  if (any(kHasIntervals)) {
    counts = reader.take_unsigned("interval_counts", {-1});
    bounds = reader.take_unsigned("intervals", {-1, 2});
  }
  IntervalReader intervals(std::move(counts), std::move(bounds), geometry.num_key_blocks());

  parts.heads.resize(static_cast<size_t>(kinds.size()));
  for (size_t i = 0; i < parts.heads.size(); ++i) {
    HeadPlan& head = parts.heads[i];
    const auto at = [&](const std::string& what) {
      const size_t site = i / static_cast<size_t>(geometry.heads), num_layers = static_cast<size_t>(parts.num_layers);
      return reader.refused("entry " + std::to_string(site / num_layers) + ", layer " +
                            std::to_string(site % num_layers) + ", head " +
                            std::to_string(i % static_cast<size_t>(geometry.heads)) + ": " + what);
    };
    if ((kind[i] & ~(kHasIntervals | kAnchored)) != 0)
      throw at("its kind is " + std::to_string(kind[i]) + ", expected 0 to 3");
    head.anchored = (kind[i] & kAnchored) != 0;
    if ((kind[i] & kHasIntervals) == 0) continue;
    try {
      head.intervals = intervals.next(head.anchored ? num_packed_blocks : geometry.num_query_blocks());
    } catch (const Error& error) {
      throw at(error.what());
    }
  }
  if (!intervals.at_end()) throw reader.refused("there are more intervals than its heads have rows");
}

void check_kind_and_version(const PlanFile& file, const std::string& where) {
  const auto text = [&](const char* key) {
    const auto found = file.metadata.find(key);
    return found == file.metadata.end() ? std::string() : found->second;
  };
  if (text("format") != kFormatName) {
    throw Error(ErrorKind::kFormat, where + ": this safetensors file is not a plan (its metadata has no format \"" +
                                        std::string(kFormatName) + "\"); make one with `calibatt calibrate`");
  }
  const std::string version_text = text("format_version");
  int version = 0;
  const char* const end = version_text.data() + version_text.size();
  const auto [next, problem] = std::from_chars(version_text.data(), end, version);
  if (problem != std::errc() || next != end || version < 1) {
    throw Error(ErrorKind::kFormat, where + ": the plan's format version is not a number from 1");
  }
  if (version > kPlanFormatVersion) {
    throw Error(ErrorKind::kFormat, where + ": the plan has format version " + version_text +
                                        ", this program reads up to " + std::to_string(kPlanFormatVersion) +
                                        "; use a newer calibatt");
  }
  if (text("checksum") != plan_checksum(file)) {
    throw Error(ErrorKind::kFormat, where + ": the plan was altered or damaged (its checksum is " + text("checksum") +
                                        ", its content's is " + plan_checksum(file) + "); copy it anew");
  }
}

}  // namespace

std::string plan_checksum(const PlanFile& file) {
  Hasher hasher;
  const auto number = [&](int64_t value) { hasher.update(&value, sizeof(value)); };
  number(static_cast<int64_t>(file.tensors.size()));
  for (const auto& [name, tensor] : file.tensors) {
    hasher.update(name);
    hasher.update(dtype_name(tensor.dtype()));
    number(tensor.rank());
    for (const int64_t extent : tensor.shape()) number(extent);
    hasher.update(std::string_view(static_cast<const char*>(tensor.raw()), tensor.size_bytes()));
  }
  for (const auto& [key, value] : file.metadata) {
    if (key == "checksum") continue;
    hasher.update(key);
    hasher.update(value);
  }
  return hasher.hex();
}

PlanFile encode_plan(const Plan& plan) {
  const Plan::Parts& parts = plan.parts();
  const AttentionGeometry& geometry = parts.geometry;
  const Json json = {{"geometry", geometry_json(geometry)},
                     {"num_layers", parts.num_layers},
                     {"summarize_skipped", parts.summarize_skipped},
                     {"anchor_rows_per_frame", parts.anchor_rows_per_frame},
                     {"provenance", provenance_json(parts.provenance)}};
  PlanFile file;
  file.metadata["format"] = kFormatName;
  file.metadata["format_version"] = std::to_string(kPlanFormatVersion);
  // Names of folders need not be UTF-8, JSON must.
  file.metadata["plan"] = json.dump(-1, ' ', false, Json::error_handler_t::replace);

  file.tensors["sigmas"] = f64_tensor(parts.sigmas);
  file.tensors["energy_targets"] = f64_tensor(parts.energy_targets);
  const std::vector<uint32_t> step_entry(parts.step_entry.begin(), parts.step_entry.end());
  file.tensors["step_entry"] = narrowed(step_entry, {static_cast<int64_t>(step_entry.size())});

  Tensor kinds(DType::kU8, {plan.num_entries(), parts.num_layers, geometry.heads});
  std::vector<uint32_t> counts, bounds;
  for (size_t i = 0; i < parts.heads.size(); ++i) {
    const HeadPlan& head = parts.heads[i];
    kinds.data<uint8_t>()[i] =
        static_cast<uint8_t>((head.intervals ? kHasIntervals : 0) | (head.anchored ? kAnchored : 0));
    if (!head.intervals) continue;
    for (int r = 0; r < head.intervals->num_query_blocks(); ++r) {
      counts.push_back(static_cast<uint32_t>(head.intervals->row(r).size()));
      for (const BlockInterval& interval : head.intervals->row(r)) {
        bounds.push_back(interval.begin);
        bounds.push_back(interval.end);
      }
    }
  }
  file.tensors["head_kind"] = kinds;
  if (!counts.empty()) {
    file.tensors["interval_counts"] = narrowed(counts, {static_cast<int64_t>(counts.size())});
    file.tensors["intervals"] = narrowed(bounds, {static_cast<int64_t>(bounds.size() / 2), 2});
  }
  if (parts.anchor_rows_per_frame > 0) {
    const std::vector<uint32_t> rows = anchor_row_numbers(geometry, parts.anchor_rows_per_frame);
    file.tensors["anchor_rows"] = narrowed(rows, {static_cast<int64_t>(rows.size())});
  }
  if (geometry.order.kind != TokenOrder::Kind::kRaster) {
    const std::vector<int32_t> raster_of = geometry.raster_of_position();
    file.tensors["raster_of_position"] = narrowed({raster_of.begin(), raster_of.end()}, {geometry.num_tokens()});
  }
  file.metadata["checksum"] = plan_checksum(file);
  return file;
}

Plan decode_plan(const PlanFile& file, const std::string& where) {
  check_kind_and_version(file, where);
  const auto text = file.metadata.find("plan");
  if (text == file.metadata.end()) throw Error(ErrorKind::kFormat, where + ": the metadata has no text \"plan\"");
  const std::string json_where = where + ": plan metadata";
  const JsonConfig json(parse_json(text->second, json_where), json_where);

  Plan::Parts parts;
  parts.geometry = parse_geometry(json.object("geometry"));
  parts.num_layers = json.integer_in("num_layers", 1, kMaxNumber);
  parts.summarize_skipped = json.boolean("summarize_skipped");
  parts.anchor_rows_per_frame = json.integer_in("anchor_rows_per_frame", 0, kMaxNumber);
  parts.provenance = parse_provenance(json.object("provenance"));

  TensorReader reader(file.tensors, where);
  parts.sigmas = reader.take_f64("sigmas", -1);
  const auto num_steps = static_cast<int64_t>(parts.sigmas.size());
  if (num_steps == 0) throw reader.refused("the plan has no steps");
  parts.energy_targets = reader.take_f64("energy_targets", num_steps);
  const UnsignedReader step_entry = reader.take_unsigned("step_entry", {num_steps});
  for (int64_t step = 0; step < num_steps; ++step) {
    if (step_entry[step] >= static_cast<uint64_t>(num_steps)) {
      throw reader.refused("step " + std::to_string(step) + " uses entry " + std::to_string(step_entry[step]) +
                           ", but there cannot be more entries than the " + std::to_string(num_steps) + " steps");
    }
    parts.step_entry.push_back(static_cast<int>(step_entry[step]));
  }
  if (parts.geometry.order.kind != TokenOrder::Kind::kRaster) {
    reader.expect(
        "raster_of_position", parts.geometry.num_tokens(), [&] { return parts.geometry.raster_of_position(); },
        "the token order of this geometry");
  }
  decode_heads(reader, parts);
  reader.finish();
  try {
    return Plan(std::move(parts));
  } catch (const Error& error) {
    throw Error(ErrorKind::kFormat, where + ": " + error.what());
  }
}

void save_plan(const Plan& plan, const std::string& path) {
  const PlanFile file = encode_plan(plan);
  write_safetensors(path, file.tensors, file.metadata);
}

std::shared_ptr<const Plan> load_plan(const std::string& path) {
  const Safetensors safetensors = Safetensors::open(path);
  PlanFile file;
  file.metadata = safetensors.metadata();
  for (const auto& [name, entry] : safetensors.entries()) file.tensors[name] = safetensors.get(name);
  return std::make_shared<const Plan>(decode_plan(file, path));
}

}  // namespace calibatt
