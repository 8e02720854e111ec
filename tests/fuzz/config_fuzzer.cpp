// libFuzzer: any bytes as a settings file are settings of each component, an index of shards, or an Error.
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <functional>

#include "base/error.h"
#include "io/safetensors.h"
#include "model_settings/wan_config.h"
#include "models/original_layout.h"
#include "models/t5/encoder.h"
#include "models/wan/vae_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  static const std::string path = "/dev/shm/calibatt-fuzzer-" + std::to_string(getpid()) + ".json";
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  const auto attempt = [](const std::function<void()>& read) {
    try {
      read();
    } catch (const Error&) {
    }
  };
  attempt([&] {
    const JsonConfig config = JsonConfig::load(path);
    attempt([&] { WanTransformerConfig::from(config).fingerprint_settings(); });
    attempt([&] { WanVaeConfig::from(config); });
    attempt([&] { T5Config::from(config); });
    attempt([&] { is_original_config(config); });
    config.unread();
  });
  attempt([&] { Safetensors::open(path); });
  return 0;
}
