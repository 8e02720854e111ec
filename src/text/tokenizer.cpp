#include "text/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/json_config.h"

namespace calibatt {
namespace {

/// A token's text in tokenizer_config.json: a string, or an object with its text as "content".
std::optional<std::string> token_text(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return std::nullopt;
}

std::string special_token(const JsonConfig& config, const std::string& key, const std::string& fallback) {
  if (!config.has(key)) return fallback;
  const auto text = token_text(config.json().at(key));
  if (!text || text->empty()) config.fail(key, "expected a token's text");
  return *text;
}

}  // namespace

struct Tokenizer::Model {
  sentencepiece::SentencePieceProcessor processor;

  std::optional<int32_t> find(const std::string& piece) const {
    const int id = processor.PieceToId(piece);  // the unknown token's id for what is not there
    if (id < 0 || id >= processor.GetPieceSize() || processor.IdToPiece(id) != piece) return std::nullopt;
    return id;
  }
};

Tokenizer::Tokenizer() : model_(std::make_unique<Model>()) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::string& folder) {
  const std::string model_path = folder + "/spiece.model";
  if (!std::filesystem::exists(model_path)) {
    throw Error(ErrorKind::kNotFound, model_path +
                                          ": no such file; the tokenizer folder needs its SentencePiece model "
                                          "(tokenizer.json alone is not read)");
  }
  Tokenizer tokenizer;
  Model& model = *tokenizer.model_;
  if (!model.processor.LoadFromSerializedProto(read_text_file(model_path)).ok() ||
      model.processor.GetPieceSize() == 0) {
    throw Error(ErrorKind::kFormat, model_path + ": not a SentencePiece model; copy it anew");
  }

  const std::string config_path = folder + "/tokenizer_config.json";
  const JsonConfig config = std::filesystem::exists(config_path) ? JsonConfig::load(config_path)
                                                                 : JsonConfig(nlohmann::json::object(), config_path);
  const auto required = [&](const std::string& key, const std::string& fallback) {
    const std::string text = special_token(config, key, fallback);
    const auto id = model.find(text);
    if (!id) config.fail(key, "the token \"" + text + "\" is not in spiece.model; the two files are not of one model");
    tokenizer.special_tokens_.emplace_back(text, *id);
    return *id;
  };
  tokenizer.pad_id_ = required("pad_token", "<pad>");
  tokenizer.eos_id_ = required("eos_token", "</s>");
  tokenizer.unk_id_ = required("unk_token", "<unk>");

  if (config.has("added_tokens_decoder")) {
    const JsonConfig added = config.object("added_tokens_decoder");
    for (const auto& [key, value] : added.json().items()) {
      const auto text = token_text(value);
      int32_t id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (!text || text->empty() || error != std::errc() || end != key.data() + key.size() || id < 0) {
        added.fail(key, "expected a token's number with its text");
      }
      tokenizer.special_tokens_.emplace_back(*text, id);
    }
  }
  std::stable_sort(tokenizer.special_tokens_.begin(), tokenizer.special_tokens_.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(const std::string& text) const {
  std::vector<int32_t> ids;
  const auto append_plain = [&](size_t begin, size_t end) {
    if (begin == end) return;
    std::vector<int> part;
    const auto status = model_->processor.Encode(text.substr(begin, end - begin), &part);
    CALIBATT_ASSERT(status.ok());
    ids.insert(ids.end(), part.begin(), part.end());
  };

  size_t plain_begin = 0;
  for (size_t i = 0; i < text.size();) {
    const auto match = std::find_if(special_tokens_.begin(), special_tokens_.end(), [&](const auto& token) {
      return text.compare(i, token.first.size(), token.first) == 0;
    });
    if (match == special_tokens_.end()) {
      ++i;
      continue;
    }
    append_plain(plain_begin, i);
    ids.push_back(match->second);
    i += match->first.size();
    plain_begin = i;
  }
  append_plain(plain_begin, text.size());
  ids.push_back(eos_id_);
  return ids;
}

Tokenizer::Cut Tokenizer::encode(const std::string& text, int max_tokens) const {
  CALIBATT_ASSERT(max_tokens >= 1);
  Cut result;
  result.ids = encode(text);
  result.num_tokens = static_cast<int>(result.ids.size());
  if (result.num_tokens <= max_tokens) return result;
  for (size_t i = static_cast<size_t>(max_tokens) - 1; i + 1 < result.ids.size(); ++i) {
    const int32_t id = result.ids[i];
    std::string part = id < vocabulary_size() ? piece(id) : "";
    if (part.starts_with("▁")) part.replace(0, std::string_view("▁").size(), " ");
    result.dropped += part;
  }
  if (result.dropped.starts_with(' ')) result.dropped.erase(0, 1);
  result.ids.resize(static_cast<size_t>(max_tokens));
  result.ids.back() = eos_id_;
  return result;
}

int Tokenizer::vocabulary_size() const {
  return model_->processor.GetPieceSize();
}

std::string Tokenizer::piece(int32_t id) const {
  CALIBATT_ASSERT(id >= 0 && id < vocabulary_size());
  return model_->processor.IdToPiece(id);
}

}  // namespace calibatt
