// tokenizer.json: the steps of a tokenizer as HuggingFace's tokenizers library writes them.
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "text/base64.h"
#include "text/tokenizer_parts.h"
#include "text/unicode.h"

namespace calibatt {
namespace {

using nlohmann::json;

/// The objects of an array, which is empty where the key is absent or null.
std::vector<JsonConfig> objects(const JsonConfig& config, const std::string& key) {
  std::vector<JsonConfig> items;
  if (!config.has(key)) return items;
  const json& array = config.json().at(key);
  if (!array.is_array()) config.fail(key, "expected an array");
  for (const json& item : array) {
    if (!item.is_object()) config.fail(key, "expected an array of objects");
    items.emplace_back(item, config.where());
  }
  return items;
}

[[noreturn]] void refuse_kind(const JsonConfig& config, const char* what, const std::string& kind, const char* known) {
  throw Error(ErrorKind::kFormat, config.where() + ": the " + what + " " + json(kind.substr(0, 60)).dump() +
                                      " is not one of a T5 tokenizer's (" + known +
                                      "); give the tokenizer of the model's own text encoder");
}

TextStep read_replace(const JsonConfig& config) {
  const JsonConfig pattern = config.object("pattern");
  const std::string content = config.string("content");
  if (pattern.has("String")) {
    const std::string text = pattern.string("String");
    if (text.empty()) pattern.fail("String", "is empty");
    return replace_step(text, content);
  }
  const std::string expression = pattern.string("Regex");
  TextStep step = replace_regex_step(expression, content);
  if (!step) refuse_kind(config, "normalizer's regular expression", expression, "runs of blanks");
  return step;
}

void add_normalizers(const JsonConfig& config, int depth, std::vector<TextStep>& steps) {
  const std::string kind = config.string("type");
  if (kind == "Sequence" && depth < 8) {
    for (const JsonConfig& each : objects(config, "normalizers")) add_normalizers(each, depth + 1, steps);
  } else if (kind == "Precompiled") {
    if (!config.has("precompiled_charsmap")) return;
    const auto bytes = from_base64(config.string("precompiled_charsmap"));
    if (!bytes) config.fail("precompiled_charsmap", "is not base64");
    if (!bytes->empty()) steps.push_back(precompiled_step(Charsmap::parse(*bytes, config.where())));
  } else if (kind == "Strip") {
    steps.push_back(strip_step(config.boolean("strip_left"), config.boolean("strip_right")));
  } else if (kind == "Replace") {
    steps.push_back(read_replace(config));
  } else if (kind == "Prepend") {
    steps.push_back(prepend_step(config.string("prepend")));
  } else if (kind == "NFC") {
    steps.push_back(nfc_step());
  } else if (kind == "NFKC") {
    steps.push_back(nfkc_step());
  } else {
    refuse_kind(config, "normalizer", kind, "Sequence, Precompiled, Strip, Replace, Prepend, NFC, NFKC");
  }
}

PrependScheme prepend_scheme(const JsonConfig& config) {
  const std::string name = config.string("prepend_scheme", "");
  if (name == "always") return PrependScheme::kAlways;
  if (name == "first") return PrependScheme::kFirst;
  if (name == "never") return PrependScheme::kNever;
  if (!name.empty()) config.fail("prepend_scheme", "expected always, first or never");
  return config.boolean("add_prefix_space", true) ? PrependScheme::kAlways
                                                  : PrependScheme::kNever;  // as older files say
}

void add_pre_tokenizers(const JsonConfig& config, int depth, std::vector<WordStep>& steps) {
  const std::string kind = config.string("type");
  if (kind == "Sequence" && depth < 8) {
    for (const JsonConfig& each : objects(config, "pretokenizers")) add_pre_tokenizers(each, depth + 1, steps);
  } else if (kind == "WhitespaceSplit") {
    steps.push_back(whitespace_split_step());
  } else if (kind == "Metaspace") {
    const std::string replacement = config.string("replacement");
    if (to_code_points(replacement).size() != 1) config.fail("replacement", "expected one character");
    steps.push_back(metaspace_step(replacement, prepend_scheme(config), config.boolean("split", true)));
  } else {
    refuse_kind(config, "pre-tokenizer", kind, "Sequence, WhitespaceSplit, Metaspace");
  }
}

void read_post_processor(const JsonConfig& config, TokenizerParts& parts) {
  const std::string kind = config.string("type");
  if (kind != "TemplateProcessing") refuse_kind(config, "post-processor", kind, "TemplateProcessing");
  bool behind = false;
  for (const JsonConfig& item : objects(config, "single")) {
    if (item.has("Sequence")) {
      if (std::exchange(behind, true)) config.fail("single", "expected one Sequence");
      continue;
    }
    const std::string name = item.object("SpecialToken").string("id");
    for (const int64_t id : config.object("special_tokens").object(name).integers("ids")) {
      if (id < 0 || id > std::numeric_limits<int32_t>::max()) config.fail("special_tokens", "an id is not one");
      (behind ? parts.suffix : parts.prefix).push_back(static_cast<int32_t>(id));
    }
  }
  if (!behind) config.fail("single", "expected a Sequence");
}

Unigram read_model(const JsonConfig& config) {
  // Files of older versions of the library do not name the kind.
  const std::string kind = config.string("type", "Unigram");
  if (kind != "Unigram") refuse_kind(config, "model", kind, "Unigram");
  const json& vocabulary = config.has("vocab") ? config.json().at("vocab") : json();
  if (!vocabulary.is_array() || vocabulary.empty()) config.fail("vocab", "expected an array of pieces with scores");
  std::vector<Unigram::Piece> pieces;
  pieces.reserve(vocabulary.size());
  for (const json& item : vocabulary) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number()) {
      config.fail("vocab", "expected pairs of a piece and its score");
    }
    pieces.push_back({item[0].get<std::string>(), item[1].get<double>()});
    check_piece(pieces.back(), pieces.size() - 1, config.where());
  }
  const int unknown = config.integer_in("unk_id", 0, static_cast<int64_t>(pieces.size()) - 1);
  return Unigram(std::move(pieces), unknown, config.boolean("byte_fallback", false));
}

}  // namespace

TokenizerParts read_tokenizer_json(const std::string& path) {
  const JsonConfig config = JsonConfig::load(path);
  TokenizerParts parts;
  parts.model = read_model(config.object("model"));
  if (config.has("normalizer")) add_normalizers(config.object("normalizer"), 0, parts.normalizer);
  if (config.has("pre_tokenizer")) add_pre_tokenizers(config.object("pre_tokenizer"), 0, parts.pre_tokenizer);
  parts.without_template = !config.has("post_processor");
  if (!parts.without_template) read_post_processor(config.object("post_processor"), parts);
  for (const JsonConfig& item : objects(config, "added_tokens")) {
    const int id = item.integer_in("id", 0, std::numeric_limits<int32_t>::max());
    parts.added_tokens.push_back(AddedToken::from(config, "added_tokens", item.json(), id));
  }
  return parts;
}

}  // namespace calibatt
