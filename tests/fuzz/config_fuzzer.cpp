// libFuzzer: any bytes as a settings file are settings of each component, an index of shards, or an Error.
#include "fuzz_input.h"
#include "io/safetensors.h"
#include "model_settings/wan_config.h"
#include "models/original_layout.h"
#include "models/t5/encoder.h"
#include "models/wan/vae_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  const std::string path = fuzz::input_file(data, size, ".json");
  fuzz::attempt([&] {
    const JsonConfig config = JsonConfig::load(path);
    fuzz::attempt([&] { WanTransformerConfig::from(config).fingerprint_settings(); });
    fuzz::attempt([&] { WanVaeConfig::from(config); });
    fuzz::attempt([&] { T5Config::from(config); });
    fuzz::attempt([&] { is_original_config(config); });
    config.unread();
  });
  fuzz::attempt([&] { Safetensors::open(path); });
  return 0;
}
