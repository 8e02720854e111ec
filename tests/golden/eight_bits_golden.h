#pragma once

#include <gmock/gmock.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "model_settings/load_options.h"
#include "models/transformer_parts.h"
#include "transformer_golden.h"

namespace calibatt {

inline void expect_same_bytes(const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.size_bytes(), b.size_bytes());
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.size_bytes()), 0);
}

/// What is asked of a denoiser with linear layers in 8 bits. A test says how a forward is made.
template <class Transformer>
class EightBitsGoldenTest : public TransformerGoldenTest<Transformer> {
 protected:
  using Base = TransformerGoldenTest<Transformer>;
  using Base::backend_, Base::golden;
  explicit EightBitsGoldenTest(const std::string& data) : Base(data) {}

  void SetUp() override {
    Base::SetUp();
    if (Base::IsSkipped()) return;
    try {
      backend_->eight_bit_ops();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }

  virtual std::string folder() const { return Base::data_ + Base::case_.model; }
  /// Of the golden case; eight_bits: TransformerStep::eight_bit_layers.
  virtual Tensor forward(Transformer& model, SelfAttention& attention, bool eight_bits,
                         const typename Base::Observer& observer) = 0;
  Tensor run(Transformer& model, SelfAttention& attention, const typename Base::Observer& observer) override {
    return forward(model, attention, true, observer);
  }

  Transformer load_with(const ModelLoadOptions& options) {
    return Transformer::load(*backend_, folder(), DType::kBF16, options);
  }
  Tensor output_of(Transformer& model, bool eight_bits) {
    GoldenDenseAttention attention(*backend_);
    return forward(model, attention, eight_bits, {}).clone();
  }
  /// A forward in bf16 with these options.
  Tensor output_with(const ModelLoadOptions& options) {
    Transformer model = load_with(options);
    return output_of(model, true);
  }
  double bf16_error() const { return golden("bf16_error").f32()[0]; }

  static inline const ModelLoadOptions kE4M3{.eight_bit_layers = true};
  static inline const ModelLoadOptions kInt8{.eight_bit_layers = true, .eight_bit_type = DType::kI8};

  /// A number that is rounded to 3 bits of mantissa errs by .026 of itself (root mean square: steps of 1/8 to 1/16); so
  /// does a product's sum of many, for each of its two factors: .037. The residual stream keeps what is before a layer,
  /// and several layers add up: what comes out of a transformer errs about as much. int8 errs by .3 of the
  /// 127th part of a row's peak, that is by .008 of numbers whose peak is 3.5 times as large. docs/decisions/0007 has
  /// trained models.
  void expect_error_of_products() {
    const double error = relative_error(output_with({.eight_bit_layers = true}), golden("output"));
    EXPECT_LT(error, 1.4 * 0.037);
    EXPECT_GT(error, 3 * bf16_error()) << "not in 8 bits";
    this->RecordProperty("error_in_1e6", static_cast<int>(1e6 * error));
    const double of_int8 = relative_error(output_with(kInt8), golden("output"));
    EXPECT_LT(of_int8, 0.5 * error);
    EXPECT_GT(of_int8, 1.1 * relative_error(output_with({}), golden("output"))) << "not in 8 bits";
    this->RecordProperty("error_of_int8_in_1e6", static_cast<int>(1e6 * of_int8));
  }

  /// Of a run that begins without 8 bits: the same forwards as of transformers that have one of the two. kept_layers:
  /// some, by way of example.
  void expect_wide_forwards_as_without(const std::vector<std::string>& kept_layers) {
    for (const bool offload : {false, true}) {
      if (offload && backend_->in_host_memory()) continue;
      const Tensor plain = output_with({.offload = offload});
      for (const std::vector<std::string>& kept : {std::vector<std::string>{}, kept_layers}) {
        const ModelLoadOptions options{.offload = offload, .eight_bit_layers = true, .kept_layers = kept};
        Transformer model = load_with(options);
        model.load_wide_layers();
        const Tensor mixed = output_with(options);
        for (const bool in_eight_bits : {false, true, false, false, true}) {
          expect_same_bytes(output_of(model, in_eight_bits), in_eight_bits ? mixed : plain);
        }
      }
    }
  }

  void expect_one_way_without_8_bits() {
    Transformer model = load_with({});
    model.load_wide_layers();
    expect_same_bytes(output_of(model, false), output_of(model, true));
  }

  /// A device's result is nearer to the CPU's than either is to float32: their errors are mostly the same. Not all are:
  /// where numbers differ in the last bit of bf16, some are rounded to another number of 8 bits.
  void expect_near_the_cpu() {
    std::vector<Tensor> found;
    for (const ModelLoadOptions& options : {kE4M3, kInt8}) found.push_back(output_with(options));
    backend_ = make_backend("cpu");
    for (const ModelLoadOptions& options : {kE4M3, kInt8}) {
      const Tensor expected = output_with(options);
      const bool int8 = options.eight_bit_type == DType::kI8;
      // Beside int8, too, a GPU has attention to the prompt in e4m3, which errs as much as all of int8 does.
      EXPECT_LT(relative_error(found[int8], expected),
                (int8 ? 1.5f : 1.0f) * relative_error(expected, golden("output")));
    }
  }

  /// names: that are none of a layer which bears 8 bits. known: one that is.
  void expect_refused(const std::vector<std::string>& names, const std::string& known) {
    for (const std::string& name : names) {
      try {
        output_with({.eight_bit_layers = true, .kept_layers = {name}});
        ADD_FAILURE() << name;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kUsage);
        EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr(name), testing::HasSubstr(known)));
      }
    }
  }
};

}  // namespace calibatt
