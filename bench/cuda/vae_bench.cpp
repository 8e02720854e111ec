#include "vae_bench.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "backend/cuda/clip_ops.h"
#include "backend/cuda/cuda_backend.h"
#include "base/error.h"
#include "models/mochi/vae.h"
#include "models/wan/vae.h"

namespace calibatt::bench {
namespace {

thread_local std::string last_error;

using AnyVae = std::variant<WanVae, MochiVae>;

struct LoadedVae {
  std::unique_ptr<Backend> backend;
  AnyVae vae;
  std::string report;
};

AnyVae load(const std::string& architecture, const std::string& folder, Backend& backend, DType compute) {
  if (architecture == "wan") return WanVae::load(folder, backend, compute);
  if (architecture == "mochi") return MochiVae::load(folder, backend, compute);
  throw Error(ErrorKind::kUsage, "no autoencoder is called " + architecture + "; there are wan and mochi");
}

/// Runs a body that may throw; `failed` is what the C caller sees then.
template <class Result, class Body>
Result guarded(Result failed, Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    last_error = error.what();
    return failed;
  }
}

}  // namespace
}  // namespace calibatt::bench

using namespace calibatt;
using bench::guarded;
using bench::LoadedVae;

const char* calibatt_vae_error(void) {
  return bench::last_error.c_str();
}

void* calibatt_vae_load(const char* architecture, const char* folder, int32_t is_bf16, int32_t fuse, int32_t candidates,
                        int32_t latent_frames) {
  return guarded(static_cast<void*>(nullptr), [&]() -> void* {
    std::unique_ptr<Backend> backend = cuda::make_cuda_backend(0, {fuse != 0, candidates, latent_frames});
    bench::AnyVae model = bench::load(architecture, folder, *backend, is_bf16 != 0 ? DType::kBF16 : DType::kF32);
    return new LoadedVae{std::move(backend), std::move(model), {}};
  });
}

void calibatt_vae_free(void* vae) {
  delete static_cast<LoadedVae*>(vae);
}

int32_t calibatt_vae_decode(void* vae, const float* latents, int64_t frames, int64_t height, int64_t width,
                            uint8_t* rgb, float* pixels) {
  return guarded(int32_t{-1}, [&] {
    const auto decode = [&](const auto& model) {
      const Tensor input(DType::kF32, {model.config().z_dim, frames, height, width},
                         std::shared_ptr<void>(const_cast<float*>(latents), [](void*) {}));
      if (rgb != nullptr) {
        const VideoFrames video = model.decode(input);
        std::copy(video.rgb.begin(), video.rgb.end(), rgb);
      }
      if (pixels != nullptr) {
        const Tensor video = model.decode_to_float(input);
        std::copy_n(video.f32(), video.size(), pixels);
      }
    };
    std::visit(decode, static_cast<LoadedVae*>(vae)->vae);
    return int32_t{0};
  });
}

int64_t calibatt_vae_peak_bytes(void* vae) {
  return guarded(int64_t{-1}, [&] {
    Backend& backend = *static_cast<LoadedVae*>(vae)->backend;
    const auto bytes = static_cast<int64_t>(backend.peak_memory_bytes());
    backend.trim_memory();
    backend.reset_peak_memory();
    return bytes;
  });
}

const char* calibatt_vae_report(void* vae) {
  auto& loaded = *static_cast<LoadedVae*>(vae);
  loaded.report.clear();
  for (const std::string& line : cuda::convolution_report(loaded.backend->clip_ops())) loaded.report += line + "\n";
  return loaded.report.c_str();
}
