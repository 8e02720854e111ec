#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "calibatt/c_api.h"

namespace calibatt::test {

inline const std::string kExamplePlan = CALIBATT_GOLDEN_DIR "/plan_v3_example.safetensors";

/// A folder that is there while the object lives.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "calibatt_capi_XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string file(const std::string& name) const { return (path / name).string(); }
  std::filesystem::path path;
};

inline void expect_refusal(calibatt_status found, calibatt_status expected, const std::string& message) {
  EXPECT_EQ(found, expected) << calibatt_last_error();
  EXPECT_THAT(calibatt_last_error(), ::testing::HasSubstr(message));
}

template <class Struct>
Struct sized() {
  Struct value;
  std::memset(static_cast<void*>(&value), 0, sizeof value);
  value.struct_size = sizeof value;
  return value;
}

inline const double kSigmas[] = {1.0, 0.75, 0.25};

/// What the plan of docs/plan_format.md is for.
inline calibatt_run example_run() {
  auto run = sized<calibatt_run>();
  run.device = CALIBATT_CPU;
  run.frames = 1, run.height = 4, run.width = 3;
  run.num_heads = 2, run.head_dim = 64, run.num_layers = 1;
  run.num_steps = 3;
  run.sigmas = kSigmas;
  return run;
}

/// q, k, v and out of one call: [batch, tokens, heads, head_dim] F32.
struct Arrays {
  Arrays(int batch, int tokens, int heads, int dim, unsigned seed) : tokens(tokens), heads(heads), dim(dim) {
    std::mt19937 random(seed);
    for (auto* array : {&q, &k, &v}) {
      array->resize(static_cast<size_t>(batch) * tokens * heads * dim);
      for (float& x : *array) x = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    }
    out.assign(q.size(), 0);
  }
  calibatt_heads heads_of(void* data) const { return {data, int64_t{tokens} * heads * dim, int64_t{heads} * dim, dim}; }
  calibatt_call call() {
    auto call = sized<calibatt_call>();
    call.batch = 1;
    call.num_tokens = tokens;
    call.dtype = CALIBATT_F32;
    call.q = heads_of(q.data()), call.k = heads_of(k.data()), call.v = heads_of(v.data());
    call.out = heads_of(out.data());
    return call;
  }
  int tokens, heads, dim;
  std::vector<float> q, k, v, out;
};

/// Closed with the object.
struct OpenPlan {
  explicit OpenPlan(const std::string& path) { status = calibatt_plan_open(path.c_str(), &plan); }
  ~OpenPlan() { calibatt_plan_close(plan); }
  OpenPlan(const OpenPlan&) = delete;
  OpenPlan& operator=(const OpenPlan&) = delete;
  calibatt_status status;
  calibatt_plan* plan = nullptr;
};
struct OpenSession {
  OpenSession(const calibatt_plan* plan, const calibatt_run& run, calibatt_on_mismatch on_mismatch = CALIBATT_REFUSE) {
    status = calibatt_session_open(plan, &run, on_mismatch, &session);
  }
  ~OpenSession() { calibatt_session_close(session); }
  OpenSession(const OpenSession&) = delete;
  OpenSession& operator=(const OpenSession&) = delete;
  std::string json() const {
    char* text = nullptr;
    if (calibatt_session_json(session, &text) != CALIBATT_OK) return calibatt_last_error();
    const std::string copy = text;
    calibatt_string_free(text);
    return copy;
  }
  calibatt_status status;
  calibatt_session* session = nullptr;
};

}  // namespace calibatt::test
