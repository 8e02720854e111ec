#include "text/tokenizer.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "io/input_file.h"
#include "text/prefix_table.h"
#include "text/tokenizer_parts.h"
#include "text/unicode.h"

namespace calibatt {
namespace {

using Token = Unigram::Token;

/// The character of sound UTF-8 that ends or begins at `at`, and where its other end is. NUL where there is none.
std::pair<char32_t, size_t> character_before(const std::string& text, size_t at) {
  size_t begin = at;
  while (begin > 0 && (static_cast<unsigned char>(text[--begin]) & 0xc0) == 0x80) continue;
  return {begin == at ? U'\0' : to_code_points(std::string_view(text).substr(begin, at - begin)).front(), begin};
}
std::pair<char32_t, size_t> character_behind(const std::string& text, size_t at) {
  size_t end = at;
  if (end < text.size()) ++end;
  while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) ++end;
  return {end == at ? U'\0' : to_code_points(std::string_view(text).substr(at, end - at)).front(), end};
}

/// A token's text in tokenizer_config.json.
std::string special_token(const JsonConfig& config, const std::string& key, const std::string& fallback) {
  return config.has(key) ? AddedToken::from(config, key, config.json().at(key), 0).text : fallback;
}

/// Text between added tokens, and these.
struct Segment {
  std::string text;
  int32_t id = -1;  ///< of an added token
  bool begins_text = false;
};

/// Those of the added tokens that are looked for in raw or in normalised text.
class AddedTokens {
 public:
  AddedTokens() = default;
  AddedTokens(const std::vector<AddedToken>& tokens, bool normalized, const std::vector<TextStep>& normalizer) {
    std::vector<PrefixTable::Entry> entries;
    for (const AddedToken& token : tokens) {
      if (token.normalized != normalized) continue;
      std::string text = normalized ? applied(normalizer, token.text) : token.text;
      if (text.empty()) continue;
      entries.emplace_back(std::move(text), static_cast<int32_t>(tokens_.size()));
      tokens_.push_back(token);
    }
    table_ = PrefixTable(std::move(entries));
  }

  /// Leftmost first, the longest of those that begin there.
  void split(const Segment& whole, std::vector<Segment>& segments) const {
    const std::string& text = whole.text;
    size_t done = 0;
    const auto append_plain = [&](size_t end) {
      if (end > done) segments.push_back({text.substr(done, end - done), -1, whole.begins_text && done == 0});
    };
    for (size_t i = 0; i < text.size();) {
      size_t length = 0;
      const AddedToken* token = nullptr;
      table_.visit_prefixes(std::string_view(text).substr(i), [&](size_t found, int32_t index) {
        length = found;
        token = &tokens_[static_cast<size_t>(index)];
      });
      if (token == nullptr) {
        ++i;
        continue;
      }
      size_t begin = i, end = i + length;
      i = end;
      if (token->single_word && (is_word_character(character_before(text, begin).first) ||
                                 is_word_character(character_behind(text, end).first))) {
        continue;
      }
      if (token->left_strip) {
        for (auto [c, next] = character_before(text, begin); begin > done && is_unicode_white_space(c);
             std::tie(c, next) = character_before(text, begin)) {
          begin = next;
        }
      }
      if (token->right_strip) {
        for (auto [c, next] = character_behind(text, end); is_unicode_white_space(c);
             std::tie(c, next) = character_behind(text, end)) {
          end = next;
        }
      }
      append_plain(begin);
      segments.push_back({text.substr(begin, end - begin), token->id});
      done = end;
      i = std::max(i, end);
    }
    append_plain(text.size());
  }

 private:
  std::vector<AddedToken> tokens_;
  PrefixTable table_;
};

void add_special_tokens(const JsonConfig& config, TokenizerParts& parts) {
  for (const auto& [key, fallback] : {std::pair{"pad_token", "<pad>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}}) {
    const std::string text = special_token(config, key, fallback);
    const auto id = parts.model.find(text);
    if (!id) {
      config.fail(key, "the token " + nlohmann::json(text).dump() +
                           " is not in the tokenizer's vocabulary; the two files are not of one model");
    }
    parts.added_tokens.push_back({text, *id});
    if (std::string_view(key) == "eos_token") parts.suffix = {*id};
  }
  if (!config.has("added_tokens_decoder")) return;
  const JsonConfig added = config.object("added_tokens_decoder");
  for (const auto& [key, value] : added.json().items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      added.fail(key, "expected a token's number with its text");
    }
    parts.added_tokens.push_back(AddedToken::from(added, key, value, id));
  }
}

}  // namespace

AddedToken AddedToken::from(const JsonConfig& config, const std::string& key, const nlohmann::json& value, int32_t id) {
  AddedToken token;
  token.id = id;
  if (value.is_string()) {
    token.text = value.get<std::string>();
  } else if (value.is_object()) {
    const JsonConfig fields(value, config.where());
    token.text = fields.string("content", "");
    token.left_strip = fields.boolean("lstrip", false);
    token.right_strip = fields.boolean("rstrip", false);
    token.single_word = fields.boolean("single_word", false);
    token.normalized = fields.boolean("normalized", false);
  }
  if (token.text.empty()) config.fail(key, "expected a token's text");
  return token;
}

struct Tokenizer::Parts : TokenizerParts {
  explicit Parts(TokenizerParts parts)
      : TokenizerParts(std::move(parts)),
        raw_tokens(added_tokens, false, normalizer),
        normalized_tokens(added_tokens, true, normalizer) {}

  AddedTokens raw_tokens, normalized_tokens;

  /// Without those around the text.
  std::vector<Token> tokens(const std::string& text) const {
    std::vector<Segment> segments;
    raw_tokens.split({to_utf8(to_code_points(text)), -1, true}, segments);
    std::vector<Token> result;
    for (const Segment& segment : segments) {
      std::vector<Segment> inner;
      if (segment.id >= 0) {
        inner.push_back(segment);
      } else {
        normalized_tokens.split({applied(normalizer, segment.text), -1, segment.begins_text}, inner);
      }
      for (const Segment& part : inner) {
        if (part.id >= 0) {
          result.push_back({part.id, part.text});
          continue;
        }
        for (const Word& word : applied(pre_tokenizer, Word{part.text, part.begins_text})) {
          model.encode(word.text, result);
        }
      }
    }
    return result;
  }
};

Tokenizer::Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

namespace {

/// Paths of a folder's tokenizer; the second is read where the first is not there.
struct TokenizerFiles {
  std::string json, spiece, config;
  explicit TokenizerFiles(const std::string& folder)
      : json(folder + "/tokenizer.json"), spiece(folder + "/spiece.model"), config(folder + "/tokenizer_config.json") {}
};

}  // namespace

std::vector<std::string> Tokenizer::files(const std::string& folder) {
  const TokenizerFiles all(folder);
  std::vector<std::string> files{path_exists(all.json) ? all.json : all.spiece, all.config};
  std::erase_if(files, [](const std::string& path) { return !path_exists(path); });
  return files;
}

Tokenizer Tokenizer::load(const std::string& folder) {
  const auto [json_path, spiece_path, config_path] = TokenizerFiles(folder);
  TokenizerParts parts;
  if (path_exists(json_path)) {
    parts = read_tokenizer_json(json_path);
  } else if (path_exists(spiece_path)) {
    parts = read_spiece_model(spiece_path);
  } else {
    throw Error(ErrorKind::kNotFound, folder +
                                          ": holds neither tokenizer.json nor spiece.model, a SentencePiece model; "
                                          "copy the model's tokenizer folder");
  }
  if (parts.without_template) {
    add_special_tokens(
        path_exists(config_path) ? JsonConfig::load(config_path) : JsonConfig(nlohmann::json::object(), config_path),
        parts);
  }
  Tokenizer tokenizer;
  tokenizer.parts_ = std::make_unique<Parts>(std::move(parts));
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(const std::string& text) const {
  return encode(text, std::numeric_limits<int>::max()).ids;
}

Tokenizer::Cut Tokenizer::encode(const std::string& text, int max_tokens) const {
  const size_t around = parts_->prefix.size() + parts_->suffix.size();
  CALIBATT_ASSERT(max_tokens >= 1);
  std::vector<Token> tokens = parts_->tokens(text);
  Cut result;
  result.num_tokens = static_cast<int>(tokens.size() + around);
  const size_t room = static_cast<size_t>(max_tokens) - std::min(static_cast<size_t>(max_tokens), around);
  for (size_t i = room; i < tokens.size(); ++i) {
    std::string part = std::move(tokens[i].text);
    for (size_t at; (at = part.find("▁")) != std::string::npos;) part.replace(at, std::string_view("▁").size(), " ");
    result.dropped += part;
  }
  if (result.dropped.starts_with(' ')) result.dropped.erase(0, 1);
  tokens.resize(std::min(tokens.size(), room));
  result.ids = parts_->prefix;
  for (const Token& token : tokens) result.ids.push_back(token.id);
  result.ids.insert(result.ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return result;
}

int Tokenizer::vocabulary_size() const {
  return parts_->model.size();
}

}  // namespace calibatt
