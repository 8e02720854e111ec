// Plans at scale: writes a synthetic plan (Wan 2.1 14B, 720p × 81 frames by default) and measures what the program does
// with one: file size, time to open, to decode a layer, to pack it for the GPU.
//   calibatt_plan_bench plan.safetensors [--steps 50 --density .375 --mix band,stripe,random …]
#include <sys/resource.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <random>

#include "backend/cuda/attention/packed_schedule.h"
#include "plan/plan_writer.h"
#include "plan/synthetic_masks.h"

namespace {

using namespace calibatt;

struct Options {
  std::string path, mix = "band,stripe,random", fingerprint = "synthetic";
  int layers = 40, heads = 40, head_dim = 128, frames = 21, height = 45, width = 80, block_q = 128, block_k = 128;
  int steps = 50, samples = 30;
  bench::MaskOptions masks;
  double flow_shift = 5;
  bool summaries = false, keep_file = false, read_only = false;
};

double seconds_of(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

double peak_megabytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024 / 1e6;
}

std::vector<bench::MaskKind> parse_mix(const std::string& text) {
  std::vector<bench::MaskKind> mix;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    mix.push_back(bench::parse_mask_kind(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return mix;
}

PlanInfo make_info(const Options& options) {
  PlanInfo info;
  info.geometry.frames = options.frames;
  info.geometry.height = options.height;
  info.geometry.width = options.width;
  info.geometry.heads = options.heads;
  info.geometry.head_dim = options.head_dim;
  info.geometry.block_q = options.block_q;
  info.geometry.block_k = options.block_k;
  info.num_layers = options.layers;
  info.summarize_skipped = options.summaries;
  for (int step = 0; step < options.steps; ++step) {
    const double linear = 1.0 - static_cast<double>(step) / options.steps;
    info.sigmas.push_back(options.flow_shift * linear / (1 + (options.flow_shift - 1) * linear));
    info.step_entry.push_back(step);
    info.energy_targets.push_back(0.9);
  }
  info.provenance.tool_version = "synthetic";
  info.provenance.transformers = {{"synthetic masks: " + options.mix, options.fingerprint}};
  info.provenance.guidance_scale = 5;
  info.provenance.scheduler = "unipc";
  info.provenance.flow_shift = options.flow_shift;
  return info;
}

void write(const Options& options) {
  const PlanInfo info = make_info(options);
  const bench::SyntheticLayers layers(parse_mix(options.mix), info.geometry, options.masks);
  double writing = 0;
  PlanWriter writer(info, options.path);
  for (int site = 0; site < options.steps * options.layers; ++site) {
    const PlanLayer layer = layers.layer(site / options.layers, site % options.layers);
    writing += seconds_of([&] { writer.add_layer(layer); });
  }
  writing += seconds_of([&] { writer.finish(); });
  std::printf("written in %.1f s (%.1f ms a layer), peak memory %.0f MB\n", writing,
              1e3 * writing / (options.steps * options.layers), peak_megabytes());
}

void read(const Options& options) {
  struct stat status {};
  if (stat(options.path.c_str(), &status) != 0) throw Error(ErrorKind::kNotFound, options.path + ": no such file");
  std::shared_ptr<const Plan> plan;
  const double opening = seconds_of([&] { plan = load_plan(options.path); });
  const auto& geometry = plan->geometry();
  const double num_heads = static_cast<double>(plan->facts().size());
  std::printf("%s, %d layers, %d entries\n", geometry.to_string().c_str(), plan->num_layers(), plan->num_entries());
  std::printf(
      "density %.4f, file %.1f MB (%.0f bytes a head, %.3f bits a block), opened in %.1f ms\n", plan->density(),
      static_cast<double>(status.st_size) / 1e6, static_cast<double>(status.st_size) / num_heads,
      8.0 * static_cast<double>(status.st_size) / num_heads / geometry.num_query_blocks() / geometry.num_key_blocks(),
      1e3 * opening);
  std::vector<double> decoding, packing, writing, bytes;
  std::vector<std::byte> image;
  std::mt19937 random(1);
  for (int sample = 0; sample < options.samples; ++sample) {
    const int entry = static_cast<int>(random() % static_cast<unsigned>(plan->num_entries()));
    const int layer = static_cast<int>(random() % static_cast<unsigned>(plan->num_layers()));
    std::shared_ptr<const PlanLayer> heads;
    decoding.push_back(seconds_of([&] { heads = plan->layer(entry, layer); }));
    std::vector<HeadSchedule> schedules(heads->size());
    for (size_t i = 0; i < heads->size(); ++i) {
      if (!(*heads)[i].intervals) continue;
      schedules[i].intervals = &*(*heads)[i].intervals;
      schedules[i].summarize_skipped = plan->info().summarize_skipped;
    }
    cuda::PackedSchedule packed;
    packing.push_back(seconds_of([&] {
      packed = cuda::pack_schedule(schedules, geometry.num_tokens(), geometry.num_tokens(), geometry.block_q,
                                   geometry.block_k);
    }));
    image.resize(std::max(image.size(), packed.size_bytes()));
    writing.push_back(seconds_of([&] { packed.write_image(std::span(image).first(packed.size_bytes())); }));
    bytes.push_back(static_cast<double>(packed.size_bytes()));
  }
  std::printf(
      "a layer, median of %d (most): decode %.1f ms (%.1f), pack %.1f ms (%.1f), image %.1f ms (%.1f), %.2f MB "
      "(%.2f)\n",
      options.samples, 1e3 * median(decoding), 1e3 * *std::max_element(decoding.begin(), decoding.end()),
      1e3 * median(packing), 1e3 * *std::max_element(packing.begin(), packing.end()), 1e3 * median(writing),
      1e3 * *std::max_element(writing.begin(), writing.end()), median(bytes) / 1e6,
      *std::max_element(bytes.begin(), bytes.end()) / 1e6);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Writes a synthetic plan and measures its file, its opening, decoding and packing");
  app.add_option("file", options.path, "Plan file to write")->required();
  app.add_option("--mix", options.mix, "Kinds of masks that heads take turns among: band, stripe, random");
  app.add_option("--density", options.masks.density, "Kept blocks over all blocks")->check(CLI::Range(0.001, 1.0));
  app.add_option("--spread", options.masks.spread, "By what share of the density heads may be denser and sparser")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--noise", options.masks.noise, "Share of the blocks of bands and stripes that are flipped");
  app.add_option("--drift", options.masks.drift, "Share of random blocks and noise that changes with each step");
  app.add_option("--layers", options.layers);
  app.add_option("--heads", options.heads);
  app.add_option("--head-dim", options.head_dim);
  app.add_option("--frames", options.frames, "Latent frames");
  app.add_option("--height", options.height, "Rows of tokens");
  app.add_option("--width", options.width, "Columns of tokens");
  app.add_option("--block-q", options.block_q);
  app.add_option("--block-k", options.block_k);
  app.add_option("--steps", options.steps, "Steps, each with masks of its own");
  app.add_option("--flow-shift", options.flow_shift);
  app.add_option("--fingerprint", options.fingerprint, "Model fingerprint to write into the plan");
  app.add_option("--samples", options.samples, "Layers to decode and pack");
  app.add_flag("--summaries", options.summaries, "Skipped blocks take part as summaries");
  app.add_flag("--keep", options.keep_file, "Leave the file there");
  app.add_flag("--read-only", options.read_only, "The file exists: measure it");
  CLI11_PARSE(app, argc, argv);
  try {
    if (!options.read_only) write(options);
    read(options);
    if (!options.keep_file && !options.read_only) std::remove(options.path.c_str());
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
