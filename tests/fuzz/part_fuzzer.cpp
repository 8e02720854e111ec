// libFuzzer: any bytes as one file that stands for a part of a model (by its first bytes safetensors, GGUF or
// PyTorch's), or that is laid over one (a LoRA), are that part or an Error. To be run in the repository's root.
#include "fuzz_input.h"
#include "model_settings/wan_config.h"
#include "models/lora.h"
#include "models/original_layout.h"
#include "models/t5/encoder.h"
#include "models/wan/vae_config.h"

namespace {

using namespace calibatt;

std::string ending_of(const std::string& bytes) {
  return bytes.starts_with("GGUF") ? ".gguf" : bytes.starts_with("PK") ? ".pth" : ".safetensors";
}

void lay_over(const MappedTensors& base, const std::string& path) {
  WeightOverlay overlay;
  add_lora({path}, base, overlay);
  const MappedTensors merged = overlay.over(base);
  for (const auto& [name, entry] : merged.entries()) {
    if (entry.change) fuzz::attempt([&, &name = name] { merged.get(name); });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const MappedTensors base = open_transformer("tests/golden/data/lora").tensors;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const std::string path = fuzz::input_file(data, size, ending_of(bytes));
  fuzz::attempt([&] { WanTransformerConfig::from(open_transformer(path).config).fingerprint_settings(); });
  fuzz::attempt([&] { T5Config::from(open_text_encoder(path).config); });
  fuzz::attempt([&] { WanVaeConfig::from(open_vae(path).config); });
  fuzz::attempt([&] { lay_over(base, path); });
  std::filesystem::remove(path);
  return 0;
}
