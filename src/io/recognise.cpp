#include "io/recognise.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "io/input_file.h"
#include "io/mapped_tensors.h"
#include "io/safetensors.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLora =
    "is a LoRA, a change to a model and no model: give the model that it was made for, and this file with --lora";
constexpr const char* kSaveAsSafetensors = "load it in PyTorch and save its tensors as safetensors";
constexpr std::string_view kLfsPointer = "version https://git-lfs";
constexpr size_t kMaxListed = 100000;  // of a folder; more are not looked at

std::string lower(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(), [](unsigned char byte) { return std::tolower(byte); });
  return result;
}

std::string_view head_of(std::span<const unsigned char> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 1024)};
}

size_t begin_of_text(std::string_view text) {
  return std::min(text.find_first_not_of(" \t\r\n\xef\xbb\xbf"), text.size());
}

bool is_web_page(std::string_view text) {
  const std::string head = lower(text.substr(begin_of_text(text), 64));
  return head.starts_with("<!doctype") || head.starts_with("<html") || head.starts_with("<?xml");
}

/// Names in a folder, sorted; none where it cannot be read.
std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end && names.size() < kMaxListed;
       entry.increment(error)) {
    names.insert(entry->path().filename().string());
  }
  return names;
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

bool is_lora_file(const std::string& name) {
  return name == "adapter_model.safetensors" || name.find("lora") != std::string::npos;
}

/// Letters, digits and -_. on both sides of one slash.
bool is_hub_name(const std::string& text) {
  const auto allowed = [](unsigned char byte) {
    return std::isalnum(byte) != 0 || byte == '-' || byte == '_' || byte == '.';
  };
  const size_t slash = text.find('/');
  if (slash == std::string::npos || slash == 0 || slash + 1 == text.size() || text[0] == '.') return false;
  return std::ranges::all_of(text.substr(0, slash), allowed) && std::ranges::all_of(text.substr(slash + 1), allowed);
}

/// The snapshot of a model in a Hugging Face cache (models--OWNER--NAME): that of the branch main, else any.
fs::path snapshot_of(const fs::path& cached) {
  std::string commit;
  try {
    commit = InputFile((cached / "refs" / "main").string()).read_all(200);
  } catch (const Error&) {
  }
  if (!commit.empty() && is_there(cached / "snapshots" / commit)) return cached / "snapshots" / commit;
  const std::set<std::string> snapshots = names_in(cached / "snapshots");
  return snapshots.empty() ? fs::path() : cached / "snapshots" / *snapshots.rbegin();
}

std::string recognise_file_as_model(const std::string& path) {
  std::vector<std::string> names;
  try {
    if (path.ends_with(".safetensors")) {
      const Safetensors file = Safetensors::open(path);
      for (const auto& [name, entry] : file.entries()) names.push_back(name);
    }
  } catch (const Error&) {
  }
  if (recognise_tensor_names(names) == kLora) return kLora;
  return "is a file; give the folder of the whole model: the one that holds model_index.json, in the diffusers layout. "
         "A single file of a transformer lacks the text encoder and the autoencoder: give it as --transformer beside "
         "--model";
}

std::string recognise_folder_as_model(const fs::path& folder, const std::set<std::string>& names) {
  if (names.contains("snapshots")) {
    const fs::path snapshot = snapshot_of(folder);
    return snapshot.empty()
               ? "is the folder of a model in a Hugging Face cache, without a snapshot; fetch the model again"
               : "is the folder of a model in a Hugging Face cache; give " + snapshot.string();
  }
  std::string cached, within;
  for (const std::string& name : names) {
    if (name.starts_with("models--")) cached += (cached.empty() ? "" : ", ") + name;
    if (within.empty() && is_there(folder / name / "model_index.json")) within = name;
  }
  if (!cached.empty()) {
    return "is a Hugging Face cache of several models (" + cached +
           "); give the snapshot of one: " + (folder / "models--…" / "snapshots" / "…").string();
  }
  if (!within.empty()) return "is not a model, but " + within + " in it is; give " + (folder / within).string();
  std::error_code error;
  const fs::path above = fs::absolute(folder, error).lexically_normal();
  const fs::path parent = above.has_filename() ? above.parent_path() : above.parent_path().parent_path();
  if (!error && is_there(parent / "model_index.json")) {
    return "is one part of a model; give the folder above it, " + parent.string();
  }
  if (names.contains("config.json")) return {};  // may be an original one: its reader says more
  return recognise_weights(folder.string());
}

}  // namespace

std::string recognise_bytes(std::span<const unsigned char> bytes) {
  const std::string_view text = head_of(bytes);
  if (text.empty()) return "is empty; fetch it again";
  if (text.starts_with(kLfsPointer)) {
    return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file";
  }
  if (is_web_page(text)) {
    return "is a web page, not the file itself (a link to the page was downloaded, or one that needs a login); "
           "download the file";
  }
  if (text.starts_with("GGUF"))
    return "is in the GGUF format; that is read as --transformer FILE.gguf or as --text-encoder FILE.gguf";
  if (text.starts_with("PK\x03\x04")) {
    return "is a zip archive, such as torch.save writes; " + std::string(kSaveAsSafetensors);
  }
  if (text.starts_with("\x80\x02") || text.starts_with("\x80\x04")) {
    return "is a Python pickle, such as old versions of torch.save write; " + std::string(kSaveAsSafetensors);
  }
  if (text.starts_with("\x1f\x8b")) return "is compressed with gzip; decompress it";
  if (text.size() > 9 && text[8] == '{' && text.substr(4, 4) == std::string_view("\0\0\0\0", 4)) {
    return "is a safetensors file; give it the ending .safetensors";
  }
  if (std::ranges::all_of(text, [](char byte) { return byte == 0; })) {
    return "begins with nothing but zeros: its download was not finished; fetch it again";
  }
  return {};
}

std::string recognise_text(std::span<const unsigned char> bytes) {
  const std::string_view text = head_of(bytes);
  constexpr size_t kLeast = 8;  // of a torn file of another kind fewer may look like text
  const auto is_of_text = [](unsigned char byte) {
    return byte >= ' ' || byte == '\t' || byte == '\n' || byte == '\r';
  };
  if (text.size() < kLeast || text.starts_with(kLfsPointer) || !std::ranges::all_of(text, is_of_text)) return {};
  if (is_web_page(text)) return "a web page";
  const char first = text[std::min(begin_of_text(text), text.size() - 1)];
  return first == '{' || first == '[' ? "JSON" : "a text file";
}

std::string find_lora(const std::string& folder) {
  const std::set<std::string> names = names_in(folder);
  const auto found = std::ranges::find_if(names, is_lora_file);
  return found == names.end() ? std::string() : *found;
}

std::string recognise_weights(const std::string& folder) {
  const std::set<std::string> names = names_in(folder);
  const auto find = [&](const auto& matches) {
    const auto found = std::find_if(names.begin(), names.end(), matches);
    return found == names.end() ? std::string() : *found;
  };
  const auto found_end = [&](std::initializer_list<std::string_view> endings) {
    return find([&](const std::string& name) {
      return std::ranges::any_of(endings, [&](std::string_view ending) { return name.ends_with(ending); });
    });
  };
  std::error_code error;
  if (const std::string link = find([&](const std::string& name) {
        const fs::path path = fs::path(folder) / name;
        return fs::is_symlink(path, error) && !is_there(path);
      });
      !link.empty()) {
    return "holds the link " + link + " to " + fs::read_symlink(fs::path(folder) / link, error).string() +
           ", where there is nothing; copy folders with what their links point to (cp -rL), or fetch the model again";
  }
  if (const std::string part = found_end({".incomplete", ".part", ".aria2", ".crdownload"}); !part.empty()) {
    return "holds " + part + ", a download that was not finished; fetch it again";
  }
  if (const std::string lora = find_lora(folder); !lora.empty()) return lora + " " + kLora;
  if (const std::string shard = find([](const std::string& name) {
        return name.find("-of-") != std::string::npos && name.ends_with(".safetensors");
      });
      !shard.empty()) {
    return "holds parts of the weights (" + shard +
           ") without their index; copy the file that ends in "
           ".safetensors.index.json, too";
  }
  if (const std::string variant = find([](const std::string& name) {
        return (name.starts_with("diffusion_pytorch_model.") || name.starts_with("model.")) &&
               (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") ||
                name.find(".safetensors.index.") != std::string::npos);
      });
      !variant.empty()) {
    const std::string stem = variant.substr(0, variant.find('.'));
    return "holds " + variant + ", a variant of the weights; to use it, name it " + stem +
           (variant.ends_with(".json") ? ".safetensors.index.json" : ".safetensors");
  }
  if (const std::string gguf = found_end({".gguf"}); !gguf.empty()) {
    return "holds " + gguf +
           ", which is no part of a folder; give it as --transformer or --text-encoder beside --model";
  }
  if (const std::string pickle = found_end({".bin", ".pt", ".pth", ".ckpt", ".bin.index.json"}); !pickle.empty()) {
    return "holds its weights as " + pickle + ", which is not read here; " + kSaveAsSafetensors +
           " (in diffusers: save_pretrained)";
  }
  if (const std::string other = found_end({".safetensors"}); !other.empty()) {
    return "holds " + other +
           " under a name that is not looked for; if these are its weights, name the file "
           "diffusion_pytorch_model.safetensors (of the text encoder: model.safetensors)";
  }
  return {};
}

std::string recognise_model_path(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) return recognise_folder_as_model(path, names_in(path));
  if (fs::exists(status)) return recognise_file_as_model(path);
  if (fs::is_symlink(fs::symlink_status(path, error))) {
    return "is a link to " + fs::read_symlink(path, error).string() + ", where there is nothing; check the path";
  }
  if (is_hub_name(path)) {
    return "no such folder; if this is a model's name on the Hugging Face hub, fetch it first: hf download " + path +
           " --local-dir " + fs::path(path).filename().string() + ", and give that folder";
  }
  return {};
}

std::string recognise_tensor_names(const std::vector<std::string>& names) {
  const bool lora = std::ranges::any_of(names, [](const std::string& name) {
    return name.find("lora_A") != std::string::npos || name.find("lora_B") != std::string::npos ||
           name.find("lora_down") != std::string::npos || name.find("lora_up") != std::string::npos ||
           name.find(".lora.") != std::string::npos;
  });
  if (lora) return kLora;
  for (const std::string_view prefix : {"model.diffusion_model.", "diffusion_model.", "_orig_mod.", "module.",
                                        "first_stage_model.", "model.", "transformer."}) {
    const auto has_prefix = [&](const std::string& name) { return name.starts_with(prefix); };
    if (!names.empty() && std::ranges::all_of(names, has_prefix)) {
      const bool wrapped = prefix == "module." || prefix == "_orig_mod.";
      return "names its tensors " + quoted_name(std::string(prefix) + "…") +
             (wrapped ? ", as a model that was wrapped for training saves them; save the model itself"
                      : ", as single-file checkpoints do; load it in diffusers (from_single_file) and save it "
                        "(save_pretrained)");
    }
  }
  return {};
}

std::string recognise_part(const std::vector<std::string>& names) {
  struct Sign {
    std::string_view end, part;
  };
  constexpr std::array kSigns{
      Sign{"patch_embedding.weight", "the transformer of a model: give it with --transformer"},
      Sign{"block.0.layer.0.SelfAttention.q.weight", "the text encoder of a model: give it with --text-encoder"},
      Sign{"enc.blk.0.attn_q.weight", "the text encoder of a model: give it with --text-encoder"},
      Sign{"blocks.0.pos_embedding.embedding.weight", "the text encoder of a model: give it with --text-encoder"},
      Sign{"decoder.conv_in.weight", "the autoencoder (VAE) of a model: give it with --vae"},
      Sign{"decoder.conv1.weight", "the autoencoder (VAE) of a model: give it with --vae"}};
  for (const Sign& sign : kSigns) {
    const auto has_end = [&](const std::string& name) { return name.ends_with(sign.end); };
    if (std::ranges::any_of(names, has_end)) return std::string(sign.part);
  }
  return {};
}

std::string recognise_dtype(const std::string& dtype, const std::vector<std::string>& names) {
  if (!dtype.starts_with("F8")) return "is not supported; convert the weights to F32 or BF16";
  const auto scale = std::ranges::find_if(names, [](const std::string& name) {
    return name.ends_with(".scale_weight") || name.ends_with("_scale") || name.ends_with("_scale_inv") ||
           name.ends_with("scaled_fp8");
  });
  if (scale == names.end()) return "is not supported; convert the weights to F32 or BF16";
  return "is not supported, and belongs to scales that lie beside it (" + quoted_name(*scale) +
         "), so that a cast alone would give wrong weights; take the model as it was published in BF16";
}

}  // namespace calibatt
