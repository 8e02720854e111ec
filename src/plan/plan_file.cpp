#include "plan/plan_file.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <utility>

#include "base/mapped_ranges.h"
#include "calibatt/counted.h"
#include "io/fingerprint.h"
#include "io/input_file.h"
#include "io/recognise.h"
#include "plan/plan_heads.h"
#include "plan/plan_json.h"
#include "plan/plan_writer.h"

namespace calibatt {
namespace {

// 0 where the text is no number.
int version_number(const std::string& text) {
  int version = 0;
  const char* const end = text.data() + text.size();
  const auto [next, problem] = std::from_chars(text.data(), end, version);
  return problem == std::errc() && next == end ? version : 0;
}

// The last one is what is written. Old ones are read forever.
constexpr PlanVersion kVersions[] = {
    {1, read_heads_v1, false, false},
    {2, read_heads_v2, true, false},
    {3, read_heads_v2, true, true},
};
static_assert(std::end(kVersions)[-1].number == kPlanFormatVersion);

const PlanVersion& check_kind_and_version(const PlanFile& file, const std::string& where) {
  const auto text = [&](const char* key) {
    const auto found = file.metadata.find(key);
    return found == file.metadata.end() ? std::string() : found->second;
  };
  if (text("format") != kPlanFormatName) {
    throw Error(ErrorKind::kFormat, where + ": this safetensors file is not a plan (its metadata has no format \"" +
                                        std::string(kPlanFormatName) + "\"); make one with `calibatt calibrate`");
  }
  const std::string version_text = text("format_version");
  const int version = version_number(version_text);
  if (version < 1) {
    throw Error(ErrorKind::kFormat, where + ": the plan's format version is not a number from 1");
  }
  const PlanVersion* const known = find_plan_version(version);
  if (known == nullptr) {
    throw Error(ErrorKind::kFormat, where + ": the plan has format version " + version_text +
                                        ", this program reads up to " + std::to_string(kPlanFormatVersion) +
                                        "; use a newer calibatt");
  }
  const std::string checksum = plan_checksum(file);
  require_mapped_files();
  if (text("checksum") != checksum) {
    throw Error(ErrorKind::kFormat, where + ": the plan was altered or damaged (its checksum is " + text("checksum") +
                                        ", its content's is " + checksum + "); copy it anew");
  }
  return *known;
}

/// recognise_text of a file.
std::string text_in(const std::string& path) {
  const InputFile file(path);
  std::vector<unsigned char> head(std::min<uint64_t>(file.size_bytes(), 1024));
  file.read_at(0, {reinterpret_cast<char*>(head.data()), head.size()});
  return recognise_text(head);
}

}  // namespace

const PlanVersion* find_plan_version(int number) {
  const auto* const found =
      std::find_if(std::begin(kVersions), std::end(kVersions), [&](const auto& each) { return each.number == number; });
  return found == std::end(kVersions) ? nullptr : found;
}

bool HeadKinds::any(uint8_t bit) const {
  return std::any_of(kind.begin(), kind.end(), [bit](uint8_t k) { return k & bit; });
}

std::string section_text(const PlanInfo& info, size_t section) {
  const auto num_layers = static_cast<size_t>(info.num_layers);
  return "entry " + std::to_string(section / num_layers) + ", layer " + std::to_string(section % num_layers);
}

std::string head_text(const PlanInfo& info, size_t head) {
  const auto num_heads = static_cast<size_t>(info.geometry.heads);
  return section_text(info, head / num_heads) + ", head " + std::to_string(head % num_heads);
}

HeadKinds take_head_kinds(TensorReader& reader, const PlanInfo& info) {
  const AttentionGeometry& geometry = info.geometry;
  const Tensor tensor = reader.take("head_kind", {info.num_entries(), info.num_layers, geometry.heads}, {DType::kU8});
  HeadKinds kinds;
  kinds.kind.assign(tensor.data<uint8_t>(), tensor.data<uint8_t>() + tensor.size());
  for (size_t i = 0; i < kinds.kind.size(); ++i) {
    if ((kinds.kind[i] & ~(kHasIntervals | kAnchored)) == 0) continue;
    throw reader.refused(head_text(info, i) + ": its kind is " + std::to_string(kinds.kind[i]) + ", expected 0 to 3");
  }
  if (!kinds.any(kAnchored)) return kinds;
  if (info.anchor_rows_per_frame < 1 || info.anchor_rows_per_frame > geometry.height) {
    throw reader.refused("some heads are anchored, but anchor_rows_per_frame is " +
                         std::to_string(info.anchor_rows_per_frame) + " for a latent height of " +
                         std::to_string(geometry.height));
  }
  reader.expect(
      "anchor_rows", info.anchor_rows_per_frame,
      [&] { return anchor_row_numbers(geometry, info.anchor_rows_per_frame); }, "the anchor rows of this geometry");
  const int num_anchor_tokens = geometry.frames * info.anchor_rows_per_frame * geometry.width + geometry.text_tokens;
  kinds.num_packed_blocks = (num_anchor_tokens - 1) / geometry.block_q + 1;
  return kinds;
}

void put_common_tensors(const PlanInfo& info, std::map<std::string, Tensor>& tensors) {
  tensors["sigmas"] = f64_tensor(info.sigmas);
  tensors["energy_targets"] = f64_tensor(info.energy_targets);
  const std::vector<uint32_t> step_entry(info.step_entry.begin(), info.step_entry.end());
  tensors["step_entry"] = narrowed(step_entry, {static_cast<int64_t>(step_entry.size())});
  if (!info.step_transformer.empty()) {
    const std::vector<uint32_t> transformers(info.step_transformer.begin(), info.step_transformer.end());
    tensors["step_transformer"] = narrowed(transformers, {static_cast<int64_t>(transformers.size())});
  }
  if (info.anchor_rows_per_frame > 0) {
    const std::vector<uint32_t> rows = anchor_row_numbers(info.geometry, info.anchor_rows_per_frame);
    tensors["anchor_rows"] = narrowed(rows, {static_cast<int64_t>(rows.size())});
  }
  if (info.geometry.order.kind != TokenOrder::Kind::kRaster) {
    const std::vector<int32_t> raster_of = info.geometry.raster_of_position();
    tensors["raster_of_position"] = narrowed({raster_of.begin(), raster_of.end()}, {info.geometry.num_tokens()});
  }
}

void put_head_kinds(const PlanInfo& info, const std::vector<HeadFacts>& facts, std::map<std::string, Tensor>& tensors) {
  Tensor kinds(DType::kU8, {info.num_entries(), info.num_layers, info.geometry.heads});
  for (size_t i = 0; i < facts.size(); ++i) {
    kinds.data<uint8_t>()[i] =
        static_cast<uint8_t>((facts[i].has_intervals ? kHasIntervals : 0) | (facts[i].anchored ? kAnchored : 0));
  }
  tensors["head_kind"] = kinds;
}

std::string plan_checksum(const PlanFile& file) {
  const auto text = file.metadata.find("format_version");
  const PlanVersion* const version =
      text == file.metadata.end() ? nullptr : find_plan_version(version_number(text->second));
  const bool sections_apart = version == nullptr || version->sections_apart;
  Hasher hasher;
  const auto number = [&](int64_t value) { hasher.update(&value, sizeof(value)); };
  number(static_cast<int64_t>(file.tensors.size()));
  for (const auto& [name, tensor] : file.tensors) {
    hasher.update(name);
    hasher.update(dtype_name(tensor.dtype()));
    number(tensor.rank());
    for (const int64_t extent : tensor.shape()) number(extent);
    if (sections_apart && name == "sections") continue;
    hasher.update(std::string_view(static_cast<const char*>(tensor.raw()), tensor.size_bytes()));
  }
  for (const auto& [key, value] : file.metadata) {
    if (key == "checksum") continue;
    hasher.update(key);
    hasher.update(value);
  }
  return hasher.hex();
}

Plan decode_plan(const PlanFile& file, const std::string& where) {
  const PlanVersion& version = check_kind_and_version(file, where);
  const auto text = file.metadata.find("plan");
  if (text == file.metadata.end()) throw Error(ErrorKind::kFormat, where + ": the metadata has no text \"plan\"");
  PlanInfo info = parse_plan_json(text->second, where + ": plan metadata", version.many_transformers);

  TensorReader reader(file.tensors, where);
  info.sigmas = reader.take_f64("sigmas", -1);
  const auto num_steps = static_cast<int64_t>(info.sigmas.size());
  if (num_steps == 0) throw reader.refused("the plan has no steps");
  info.energy_targets = reader.take_f64("energy_targets", num_steps);
  const UnsignedReader step_entry = reader.take_unsigned("step_entry", {num_steps});
  for (int64_t step = 0; step < num_steps; ++step) {
    if (step_entry[step] >= static_cast<uint64_t>(num_steps)) {
      throw reader.refused("step " + std::to_string(step) + " uses entry " + std::to_string(step_entry[step]) +
                           ", but there cannot be more entries than the " + counted(num_steps, "steps"));
    }
    info.step_entry.push_back(static_cast<int>(step_entry[step]));
  }
  if (info.provenance.transformers.size() > 1) {
    const UnsignedReader transformers = reader.take_unsigned("step_transformer", {num_steps});
    for (int64_t step = 0; step < num_steps; ++step) {
      info.step_transformer.push_back(static_cast<int>(std::min<uint32_t>(transformers[step], INT32_MAX)));
    }
  }
  if (info.geometry.order.kind != TokenOrder::Kind::kRaster) {
    reader.expect(
        "raster_of_position", info.geometry.num_tokens(), [&] { return info.geometry.raster_of_position(); },
        "the token order of this geometry");
  }
  try {
    return version.read_heads(reader, std::move(info));
  } catch (const Error& error) {
    const std::string message = error.what();
    if (message.starts_with(where + ": ")) throw;
    throw Error(ErrorKind::kFormat, where + ": " + message);
  }
}

Safetensors open_plan_tensors(const std::string& path) {
  const std::string found = text_in(path);
  if (found.empty()) return Safetensors::open(path);
  std::string what = path + ": is " + found + ", not a plan";
  if (found == "a web page") what += " (a page that `calibatt report` wrote is opened in a browser)";
  if (found == "JSON") what += " (`calibatt report FILE -o page.html` shows the report of a run or a calibration)";
  throw Error(ErrorKind::kFormat,
              what + "; give the plan itself, the .safetensors file that `calibatt calibrate` wrote");
}

PlanFile open_plan_file(const std::string& path) {
  const Safetensors safetensors = open_plan_tensors(path);
  PlanFile file;
  file.metadata = safetensors.metadata();
  for (const auto& [name, entry] : safetensors.entries()) file.tensors[name] = safetensors.get(name);
  return file;
}

void save_plan(const Plan& plan, const std::string& path) {
  PlanWriter writer(plan.info(), path);
  for (int entry = 0; entry < plan.num_entries(); ++entry) {
    for (int layer = 0; layer < plan.num_layers(); ++layer) writer.add_layer(*plan.layer(entry, layer));
  }
  writer.finish();
}

std::shared_ptr<const Plan> load_plan(const std::string& path) {
  return std::make_shared<const Plan>(decode_plan(open_plan_file(path), path));
}

}  // namespace calibatt
