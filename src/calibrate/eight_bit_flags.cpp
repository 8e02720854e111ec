#include "calibrate/eight_bit_flags.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <set>

#include "base/error.h"

namespace calibatt {
namespace {

[[noreturn]] void refuse(const char* flag, const std::string& text, const char* what) {
  throw Error(ErrorKind::kUsage, std::string(flag) + " " + text.substr(0, 60) + ": " + what);
}

std::string without_torch(const std::string& name) {
  return name.starts_with("torch.") ? name.substr(6) : name;
}

/// The queries, keys and values of self-attention are one product: an entry that names one of them keeps all three.
/// (Those of attention to the prompt, attn2, are products of their own.)
void add_with_its_product(const std::string& entry, std::set<std::string>& layers) {
  layers.insert(entry);
  const size_t last = entry.rfind('.') + 1;  // 0 where there is no dot
  const std::string before = last == 0 ? "attn1." : entry.substr(0, last), name = entry.substr(last);
  if ((name != "to_q" && name != "to_k" && name != "to_v") || ("." + before).ends_with(".attn2.")) return;
  for (const char* each : {"to_q", "to_k", "to_v"}) layers.insert(before + each);
}

bool is_fp8(const std::string& name) {
  return name == "fp8" || name == "fp8_e4m3fn" || name == "float8_e4m3fn";
}

}  // namespace

WeightsPrecision weights_precision_of(const std::string& text) {
  const std::string name = without_torch(text);
  if (name == "auto") return WeightsPrecision::kAuto;
  if (name == "bf16" || name == "bfloat16") return WeightsPrecision::kBF16;
  if (is_fp8(name)) return WeightsPrecision::kFP8;
  if (name == "int8") return WeightsPrecision::kINT8;
  refuse("--weights-dtype", text, "choose fp8 (e4m3), int8, bf16 or auto");
}

AttentionDtype attention_dtype_of(const std::string& text) {
  const std::string name = without_torch(text);
  if (name == "auto") return AttentionDtype::kModel;
  if (name == "bf16" || name == "bfloat16") return AttentionDtype::kBF16;
  if (is_fp8(name)) return AttentionDtype::kFP8;
  refuse("--attention-dtype", text, "choose fp8 (int8 queries and keys, e4m3 weights and values), bf16 or auto");
}

std::vector<std::string> kept_layers_of(const std::string& typed) {
  std::string text = typed;
  std::erase(text, ' ');  // no layer's name has one
  std::vector<std::string> layers;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end == begin) refuse("--keep-layers", typed, "give names between commas, such as ffn.net.2,blocks.0");
    layers.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return layers;
}

std::string weights_dtype_name(WeightsPrecision weights, const std::vector<std::string>& kept_layers) {
  if (weights != WeightsPrecision::kFP8 && weights != WeightsPrecision::kINT8) return "";
  const std::string name = weights == WeightsPrecision::kFP8 ? "fp8" : "int8";
  std::string kept;
  std::set<std::string> layers;  // in one order
  for (const std::string& entry : kept_layers) add_with_its_product(entry, layers);
  for (const std::string& layer : layers) kept += (kept.empty() ? name + ", but for " : ", ") + layer;
  return kept.empty() ? name : kept;
}

EightBitParts parts_to_measure(const CompileOptions& compile, EightBitParts gaining) {
  if (!compile.may_reuse_steps()) return {};
  const auto is_measured = [&](bool allowed, bool gains_time, std::optional<int> from) {
    return allowed && (compile.tells_eight_bits() ? from.has_value() : gains_time);
  };
  const EightBitParts allowed = compile.may_be_eight_bit;
  return {.attention = is_measured(allowed.attention, gaining.attention, compile.eight_bit_attention_from),
          .layers = is_measured(allowed.layers, gaining.layers, compile.eight_bit_layers_from)};
}

std::string note_of_eight_bits(const CompileOptions& compile, EightBitParts measured, const std::string& weights_dtype,
                               std::string_view backend) {
  const EightBitParts allowed = compile.may_be_eight_bit;
  if (!allowed.any()) return "";
  const std::string layers = "--weights-dtype " + weights_dtype.substr(0, weights_dtype.find(','));
  const auto flags_of = [&layers](EightBitParts parts) {
    return (parts.layers ? layers : "") + (parts.layers && parts.attention ? ", " : "") +
           (parts.attention ? "--attention-dtype fp8" : "");
  };
  if (compile.tells_eight_bits()) {
    const EightBitParts untold{.attention = allowed.attention && !compile.eight_bit_attention_from,
                               .layers = allowed.layers && !compile.eight_bit_layers_from};
    if (!untold.any()) return "";
    return flags_of(untold) + ": no steps are told for these 8 bits, so the plan has none; " +
           (untold.layers ? "--eight-bit-layers-from" : "--eight-bit-attention-from") + " tells them";
  }
  const std::string told = "; --eight-bit-layers-from and --eight-bit-attention-from plan them all the same";
  if (!compile.may_reuse_steps()) {
    return flags_of(allowed) +
           ": which steps are in 8 bits is chosen under --speedup and --psnr alone, and this plan "
           "leaves it to runs" +
           told;
  }
  const EightBitParts useless{.attention = allowed.attention && !measured.attention,
                              .layers = allowed.layers && !measured.layers};
  if (!useless.any()) return "";
  return flags_of(useless) + ": these 8 bits are not computed here, or save no time on the backend " +
         std::string(backend) + " at this size, so the plan has none" + told;
}

std::string doubt_about_told_steps(const CompileOptions& compile, std::optional<double> psnr_db, bool measures) {
  if (!compile.growth || !compile.tells_eight_bits()) return "";
  const bool layers = compile.eight_bit_layers_from && !compile.may_be_eight_bit.layers,
             attention = compile.eight_bit_attention_from && !compile.may_be_eight_bit.attention;
  if (layers || attention) {
    const auto of_parts = [&](const char* of_layers, const char* of_attention) {
      return std::string(layers ? of_layers : "") + (layers && attention ? " and " : "") +
             (attention ? of_attention : "");
    };
    const std::string flags = of_parts("--weights-dtype int8 (or fp8)", "--attention-dtype fp8");
    const std::string s = layers && attention ? "" : "s";
    return std::string("the expected change ") + (measures ? "and the held-out run are" : "is") +
           " without the plan's " + of_parts("linear layers", "self-attention") + " in 8 bits" +
           (measures ? ", which were not measured; " + flags + " measure" + s + " them"
                     : "; " + flags + " count" + s +
                           " them, once `calibatt calibrate` has measured them with the same flags");
  }
  constexpr double kSeen = 0.5;  // dB
  if (!compile.psnr || !psnr_db || *psnr_db >= *compile.psnr - kSeen) return "";
  std::array<char, 200> text{};
  std::snprintf(
      text.data(), text.size(),
      "--psnr %.4g is not reached: about %.1f dB are expected with the steps in 8 bits that are told; let more "
      "first steps be without them",
      *compile.psnr, *psnr_db);
  return text.data();
}

std::string doubt_about_kept_layers(const CompileOptions& compile, const std::string& layers) {
  const std::string_view before = "but for ";
  const size_t kept = layers.find(before);
  if (!compile.may_reuse_steps() || !compile.may_be_eight_bit.layers || kept == std::string::npos ||
      compile.gains.layers <= 1) {
    return "";
  }
  return "the predicted speedup counts " + layers.substr(kept + before.size()) +
         " (--keep-layers) as in 8 bits like all other layers: runs are slower than it says";
}

}  // namespace calibatt
