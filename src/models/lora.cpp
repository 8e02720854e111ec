#include "models/lora.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "backend/cpu/make_backend.h"
#include "base/checked_copy.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "io/fingerprint.h"
#include "io/input_file.h"
#include "io/json_config.h"
#include "io/recognise.h"
#include "io/safetensors.h"
#include "models/lora_keys.h"

namespace calibatt {
namespace {

constexpr size_t kNamedKeys = 3;    // keys in a message
constexpr double kPeftAlpha = 8;    // of a config that does not say it (LoraConfig.lora_alpha)
constexpr double kMaxFactor = 1e4;  // of a product; more is a damaged alpha
constexpr int64_t kGrainElements = int64_t{1} << 14;

bool has_peft_names(const Safetensors& file) {
  return std::ranges::any_of(file.entries(), [](const auto& item) {
    const std::string& name = item.first;
    return (name.starts_with("base_model.model.") || name.starts_with("transformer.")) &&
           (name.find(".lora_A.") != std::string::npos || name.find(".lora_B.") != std::string::npos);
  });
}

/// A PEFT adapter's settings, which its tensors do not have.
class AdapterConfig {
 public:
  /// adapter_config.json beside the tensors, or what diffusers keeps of it in their file. Neither: alphas are the
  /// ranks. A file that is named otherwise than PEFT does may have been put beside a config; its own settings go first.
  static AdapterConfig of(const Safetensors& file) {
    AdapterConfig config;
    const std::string& path = file.path();
    const std::string beside = path.substr(0, path.rfind('/') + 1) + "adapter_config.json";
    const auto kept = file.metadata().find("lora_adapter_metadata");
    const bool has_kept = kept != file.metadata().end();
    const bool named_by_peft = path.ends_with("adapter_model.safetensors");
    if ((named_by_peft || (!has_kept && has_peft_names(file))) && path_exists(beside)) {
      config.read(JsonConfig::load(beside), "", file);
    } else if (has_kept) {
      const std::string where = path + ": lora_adapter_metadata";
      config.read({parse_json(kept->second, where), where}, "transformer.", file);
    }
    return config;
  }

  /// What the product of a layer's matrices is multiplied by; alpha: what the file says of the layer.
  double factor(const std::string& layer, std::optional<double> alpha, int64_t rank) const {
    if (!alpha) alpha = alpha_of(layer);
    if (!alpha) return 1;
    return *alpha / (by_root_of_rank_ ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
  }

  /// All of it; empty where there is none.
  const std::string& text() const { return text_; }

 private:
  void read(const JsonConfig& json, const std::string& prefix, const Safetensors& file) {
    text_ = json.json().dump();
    const std::string type = json.string(prefix + "peft_type", "LORA");
    if (type != "LORA") json.fail(prefix + "peft_type", quoted_name(type) + " is not supported, LORA alone is");
    for (const auto& [key, what] :
         {std::pair("use_dora", "DoRA"), std::pair("fan_in_fan_out", "a transposed weight")}) {
      if (json.boolean(prefix + key, false)) json.fail(prefix + key, std::string(what) + " is not supported");
    }
    const bool is_there = std::ranges::any_of(
        json.json().items(), [&](const auto& item) { return std::string_view(item.key()).starts_with(prefix); });
    if (is_there) alpha_ = json.number(prefix + "lora_alpha", kPeftAlpha);
    by_root_of_rank_ = json.boolean(prefix + "use_rslora", false);
    if (!json.has(prefix + "alpha_pattern")) return;
    const JsonConfig pattern = json.object(prefix + "alpha_pattern");
    for (const auto& [key, value] : pattern.json().items()) read_pattern(pattern, key, file);
  }

  // To PEFT the keys are regular expressions, each for the end of a layer's name, from a dot on. The names that it
  // writes there itself mean the same when they are taken as they are.
  void read_pattern(const JsonConfig& pattern, const std::string& key, const Safetensors& file) {
    std::string name = key;
    for (size_t at; (at = name.find("\\.")) != std::string::npos;) name.erase(at, 1);
    const bool whole = name.starts_with('^');
    if (whole) name.erase(0, 1);
    if (name.find_first_of("\\^$*+?()[]{}|") != std::string::npos) {
      pattern.fail(key, "regular expressions are not supported; write an entry for each layer");
    }
    name = parse_lora_key(name).layer;
    bool found = false;
    for (const auto& [tensor, entry] : file.entries()) {
      const LoraKey part = parse_lora_key(tensor);
      if (part.part != LoraPart::kDown) continue;
      if (part.layer != name && (whole || !part.layer.ends_with("." + name))) continue;
      found = true;
      const double alpha = pattern.number(key);
      if (const auto [at, first] = pattern_.emplace(part.layer, alpha); !first && at->second != alpha) {
        pattern.fail(key, "gives " + quoted_name(part.layer) + " another alpha than an entry before it");
      }
    }
    if (!found) pattern.fail(key, "is the name of no layer in " + file.path());
  }

  std::optional<double> alpha_of(const std::string& layer) const {
    const auto found = pattern_.find(layer);
    return found != pattern_.end() ? found->second : alpha_;
  }

  std::string text_;
  std::optional<double> alpha_;
  bool by_root_of_rank_ = false;
  std::map<std::string, double> pattern_;  // by layer
};

/// What changes one tensor by a product of matrices: names in the file.
struct LowRank {
  std::string layer, down, up, alpha, up_bias, bias_target;
};

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kNamedKeys); ++i) text += (i > 0 ? ", " : "") + quoted_name(names[i]);
  if (names.size() > kNamedKeys) text += " and " + std::to_string(names.size() - kNamedKeys) + " more";
  return text;
}

/// Adds scale · up·down to rows of a matrix: `down` becomes a linear layer, `up` its input.
class ProductAdder {
 public:
  ProductAdder(Tensor up, const Tensor& down, double scale) : up_(std::move(up)) {
    static const std::shared_ptr<Backend> cpu = make_backend("cpu");
    backend_ = cpu;
    const int64_t rank = down.dim(0), in = down.dim(1);
    const Tensor wide = converted(down, DType::kF32);
    Tensor transposed(DType::kF32, {in, rank});
    for (int64_t row = 0; row < rank; ++row) {
      for (int64_t column = 0; column < in; ++column) {
        transposed.f32()[column * rank + row] = static_cast<float>(scale * wide.f32()[row * in + column]);
      }
    }
    layer_ = backend_->make_linear(transposed, {}, DType::kF32);
  }
  void operator()(int64_t first_row, Tensor& rows) const {
    Tensor sum = rows.reshaped({rows.dim(0), layer_->out_features()});
    const int64_t rank = layer_->in_features();
    const auto* from =
        static_cast<const char*>(up_.raw()) + first_row * rank * static_cast<int64_t>(dtype_size(up_.dtype()));
    Tensor input(DType::kF32, {rows.dim(0), rank});
    convert_elements(from, up_.dtype(), input.raw(), DType::kF32, input.size());
    backend_->linear(*layer_, input, sum, {.accumulate = true});
  }

 private:
  std::shared_ptr<Backend> backend_;
  Tensor up_;  // [out, rank]
  std::shared_ptr<const LinearLayer> layer_;
};

/// Reads one LoRA file into an overlay.
class LoraReader {
 public:
  LoraReader(const Lora& lora, const Safetensors& file, const MappedTensors& transformer, WeightOverlay& overlay)
      : lora_(lora),
        file_(file),
        base_(std::make_shared<const MappedTensors>(transformer)),
        overlay_(overlay),
        config_(AdapterConfig::of(file)) {}

  void read() {
    const LoraTargets targets(*base_);
    for (const auto& [name, entry] : file_.entries()) {
      const LoraKey key = parse_lora_key(name);
      if (key.part == LoraPart::kUnsupported) {
        throw Error(ErrorKind::kMismatch,
                    file_.describe(name) + ": is of a " + key.kind +
                        ", a kind of LoRA that is not supported, and what lies beside it means something else "
                        "without it; merge it where it was made");
      }
      const std::string target = key.part == LoraPart::kUnknown ? "" : targets.find(key);
      if (target.empty()) {
        unused_.push_back(name);
      } else {
        require_numbers(name, key.part);
        take(key, name, target);
      }
    }
    for (const auto& [target, matrices] : low_rank_) add_product(target, matrices);
  }

  /// Empty: every key is used.
  std::string warning() const {
    if (unused_.empty()) return {};
    return file_.path() + ": " + std::to_string(unused_.size()) + " of " + std::to_string(file_.entries().size()) +
           " keys are not used, since this model has no such layers: " + listed(unused_);
  }
  void require_use() const {
    if (file_.entries().empty()) {
      throw Error(ErrorKind::kFormat, file_.path() +
                                          ": holds no tensors, and a LoRA without any changes nothing; fetch "
                                          "or save it again");
    }
    if (unused_.size() < file_.entries().size()) return;
    throw Error(ErrorKind::kMismatch, file_.path() + ": none of its " + std::to_string(unused_.size()) +
                                          " keys changes a layer of this model: " + listed(unused_) +
                                          "; is it a LoRA of this model?");
  }

 private:
  void take(const LoraKey& key, const std::string& name, const std::string& target) {
    switch (key.part) {
      case LoraPart::kDown:
        return set(low_rank_[target].down, key, name, target);
      case LoraPart::kUp:
        return set(low_rank_[target].up, key, name, target);
      case LoraPart::kAlpha:
        return set(low_rank_[target].alpha, key, name, target);
      case LoraPart::kUpBias: {
        const std::string weight = target.substr(0, target.rfind('.')) + ".weight";
        low_rank_[weight].bias_target = target;
        return set(low_rank_[weight].up_bias, key, name, weight);
      }
      default:
        set(differences_[target], key, name, target);
        return add_difference(name, target, lora_.scale);
    }
  }

  void set(std::string& place, const LoraKey& key, const std::string& name, const std::string& target) {
    if (!place.empty()) {
      throw Error(ErrorKind::kFormat, file_.describe(name) + " is for the same layer as " + quoted_name(place) +
                                          "; the file mixes two spellings of its keys");
    }
    place = name;
    if (key.part == LoraPart::kDown) low_rank_[target].layer = key.layer;
  }

  void add_product(const std::string& target, const LowRank& matrices) {
    if (matrices.down.empty() && matrices.up.empty() && matrices.up_bias.empty()) {
      if (!differences_.contains(target)) unused_.push_back(matrices.alpha);  // it says nothing of a .diff beside it
      return;
    }
    if (matrices.down.empty() || matrices.up.empty()) {
      const std::string& there = !matrices.down.empty() ? matrices.down
                                 : !matrices.up.empty() ? matrices.up
                                                        : matrices.up_bias;
      throw Error(ErrorKind::kFormat,
                  file_.describe(there) + ": the other matrix of its product is missing; the file is not complete");
    }
    const std::vector<int64_t>& shape = base_->shape(target);
    const int64_t out = shape.empty() ? 0 : shape[0];
    int64_t in = 1;
    for (size_t axis = 1; axis < shape.size(); ++axis) in *= shape[axis];
    const std::vector<int64_t>&down = file_.shape(matrices.down), &up = file_.shape(matrices.up);
    const int64_t rank = down.empty() ? 0 : down[0];
    require_matrix(matrices.down, rank, in, target);
    require_matrix(matrices.up, out, rank, target);
    if (up.empty() || up[0] != out) refuse_shape(matrices.up, target);

    std::optional<double> alpha;
    if (!matrices.alpha.empty()) {
      if (file_.get(matrices.alpha).size() != 1) refuse_shape(matrices.alpha, target);
      alpha = number(matrices.alpha);
    }
    const double factor = lora_.scale * config_.factor(matrices.layer, alpha, rank);
    if (!(std::abs(factor) <= kMaxFactor)) {
      throw Error(ErrorKind::kNumeric, file_.describe(matrices.alpha.empty() ? matrices.down : matrices.alpha) +
                                           ": with the scale it multiplies this layer's change by more than 10000; the "
                                           "alpha is damaged");
    }
    const Tensor down_matrix = file_.get(matrices.down).reshaped({rank, in}),
                 up_matrix = file_.get(matrices.up).reshaped({out, rank});
    lay_over(target, [=]() -> WeightOverlay::AddToRows {
      auto adder = std::make_shared<const ProductAdder>(up_matrix, down_matrix, factor);
      return [adder](int64_t first_row, Tensor& rows) { (*adder)(first_row, rows); };
    });
    if (!matrices.up_bias.empty()) add_difference(matrices.up_bias, matrices.bias_target, factor);
  }

  void add_difference(const std::string& name, const std::string& target, double scale) {
    const std::vector<int64_t>& shape = base_->shape(target);
    const Tensor difference = file_.get(name);
    int64_t size = 1;
    for (const int64_t extent : shape) size *= extent;
    const bool flat = difference.rank() == 1 && difference.size() == size;
    if (!flat && without_ones(difference.shape()) != without_ones(shape)) refuse_shape(name, target);
    lay_over(target, [=, elements = difference.reshaped({size})]() -> WeightOverlay::AddToRows {
      return [=](int64_t first_row, Tensor& rows) {
        const int64_t count = rows.size(), first = first_row * (count / rows.dim(0));
        const auto* from =
            static_cast<const char*>(elements.raw()) + first * static_cast<int64_t>(dtype_size(elements.dtype()));
        Tensor wide(DType::kF32, {count});
        convert_elements(from, elements.dtype(), wide.raw(), DType::kF32, count);
        for (int64_t i = 0; i < count; ++i) rows.f32()[i] += static_cast<float>(scale) * wide.f32()[i];
      };
    });
  }

  static std::vector<int64_t> without_ones(std::vector<int64_t> shape) {
    std::erase(shape, 1);
    return shape;
  }

  /// Adds to the overlay. A sum that the weight's dtype cannot hold is the doing of the LoRA, not of the model's file.
  void lay_over(const std::string& target, const std::function<WeightOverlay::AddToRows()>& prepare) {
    const MappedTensors::Entry& entry = base_->entries().at(target);
    // From here on F16 and BF16 round to infinity.
    const float limit = entry.dtype == DType::kF16    ? 65520.0f
                        : entry.dtype == DType::kBF16 ? 0x1.ffp127f
                                                      : std::numeric_limits<float>::infinity();
    overlay_.add(target, entry.shape, [=, path = file_.path(), base = base_]() -> WeightOverlay::AddToRows {
      return [=, add = prepare()](int64_t first_row, Tensor& rows) {
        add(first_row, rows);
        std::atomic<bool> fits = true;
        parallel_for(rows.size(), kGrainElements, [&](int64_t begin, int64_t end, int) {
          bool all = true;
          for (int64_t i = begin; i < end; ++i) all &= std::abs(rows.f32()[i]) < limit;
          if (!all) fits = false;
        });
        if (fits || !all_finite(base->get(target))) return;
        throw Error(ErrorKind::kNumeric, path + ": with this LoRA " + target + " has values that are not finite in " +
                                             std::string(dtype_name(base->entries().at(target).dtype)) +
                                             "; give it a smaller scale, or fetch its file again");
      };
    });
  }

  /// Of an alpha, which torch.tensor(16) makes an integer.
  double number(const std::string& name) const {
    const Tensor tensor = file_.get(name);
    const auto as = [&]<class T>(T value) {
      std::memcpy(&value, tensor.raw(), sizeof value);
      return static_cast<double>(value);
    };
    switch (tensor.dtype()) {
      case DType::kI64:
        return as(int64_t{});
      case DType::kI32:
        return as(int32_t{});
      case DType::kI16:
        return as(int16_t{});
      case DType::kI8:
        return as(int8_t{});
      case DType::kU8:
        return as(uint8_t{});
      default:
        return converted(tensor, DType::kF32).f32()[0];
    }
  }

  void require_numbers(const std::string& name, LoraPart part) const {
    const Tensor tensor = file_.get(name);
    const auto is_one_of = [&](std::initializer_list<DType> dtypes) {
      return std::ranges::find(dtypes, tensor.dtype()) != dtypes.end();
    };
    if (part == LoraPart::kAlpha && is_one_of({DType::kI64, DType::kI32, DType::kI16, DType::kI8, DType::kU8})) return;
    if (!is_one_of({DType::kF32, DType::kBF16, DType::kF16, DType::kF64})) {
      throw Error(ErrorKind::kFormat, file_.describe(name) + ": expected F32, BF16 or F16, found " +
                                          std::string(dtype_name(tensor.dtype())));
    }
    if (!all_finite(tensor)) {
      throw Error(ErrorKind::kNumeric, file_.describe(name) + " holds NaN or infinity; fetch the file again");
    }
  }
  void require_matrix(const std::string& name, int64_t rows, int64_t columns, const std::string& target) const {
    int64_t size = 1;
    for (const int64_t extent : file_.shape(name)) size *= extent;
    if (rows < 1 || size != rows * columns) refuse_shape(name, target);
  }
  [[noreturn]] void refuse_shape(const std::string& name, const std::string& target) const {
    throw Error(ErrorKind::kMismatch, file_.describe(name) + ": is " + shape_text(file_.shape(name)) +
                                          ", which does not fit " + target + " " + shape_text(base_->shape(target)) +
                                          "; it is a LoRA of another model");
  }

  const Lora& lora_;
  const Safetensors& file_;
  std::shared_ptr<const MappedTensors> base_;  // shared with what the overlay keeps
  WeightOverlay& overlay_;
  AdapterConfig config_;
  std::map<std::string, LowRank> low_rank_;         // by the weight that it changes
  std::map<std::string, std::string> differences_;  // the same: key in the file
  std::vector<std::string> unused_;
};

}  // namespace

std::string lora_file(const Lora& lora) {
  if (!is_folder(lora.path)) return lora.path;
  std::string file = lora.path + "/adapter_model.safetensors";
  if (path_exists(file)) return file;
  const std::string other = find_lora(lora.path), itself = other.empty() ? "" : " itself: " + lora.path + "/" + other;
  throw Error(ErrorKind::kNotFound, lora.path +
                                        ": is a folder without adapter_model.safetensors, which PEFT's adapters "
                                        "have; give the file of the LoRA" +
                                        itself);
}

std::string lora_fingerprint(const Lora& lora) {
  const std::string path = lora_file(lora);
  Hasher hasher;
  hasher.update(file_hash(path));
  hasher.update(AdapterConfig::of(Safetensors::open(path)).text());
  hasher.update(&lora.scale, sizeof(lora.scale));
  return hasher.hex();
}

void add_lora(const Lora& lora, const MappedTensors& transformer, WeightOverlay& overlay,
              const std::function<void(const std::string&)>& warn) {
  const Safetensors file = Safetensors::open(lora_file(lora));
  LoraReader reader(lora, file, transformer, overlay);
  reader.read();
  reader.require_use();
  if (const std::string warning = reader.warning(); warn && !warning.empty()) warn(warning);
}

bool concerns(const Lora& lora, int expert, int num_experts) {
  if (lora.expert == Lora::Expert::kAll) return true;
  return num_experts > 1 && expert == (lora.expert == Lora::Expert::kHigh ? 0 : 1);
}

std::shared_ptr<const WeightOverlay> merged_overlay(const std::vector<Lora>& loras, int expert, int num_experts,
                                                    const MappedTensors& transformer,
                                                    std::shared_ptr<const WeightOverlay> first,
                                                    const std::function<void(const std::string&)>& warn) {
  if (loras.empty()) return first;
  auto overlay = first ? std::make_shared<WeightOverlay>(*first) : std::make_shared<WeightOverlay>();
  for (const Lora& lora : loras) {
    if (num_experts == 1 && lora.expert != Lora::Expert::kAll) {
      throw Error(ErrorKind::kUsage, lora.path +
                                         ": is given for one of two transformers, and this model has one; give it with "
                                         "--lora");
    }
    if (!concerns(lora, expert, num_experts)) continue;
    const bool said_before = lora.expert == Lora::Expert::kAll && expert > 0;
    add_lora(lora, transformer, *overlay, said_before ? std::function<void(const std::string&)>() : warn);
  }
  return overlay->empty() ? nullptr : overlay;
}

}  // namespace calibatt
