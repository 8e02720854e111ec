#include "models/wan/original_names.h"

#include <gtest/gtest.h>

namespace calibatt {
namespace {

// Pairs read off the two public repositories of one model.
TEST(OriginalWanNames, OfThePublicCheckpoints) {
  const std::pair<const char*, const char*> kPairs[] = {
      {"patch_embedding.weight", "patch_embedding.weight"},
      {"condition_embedder.text_embedder.linear_1.weight", "text_embedding.0.weight"},
      {"condition_embedder.text_embedder.linear_2.bias", "text_embedding.2.bias"},
      {"condition_embedder.time_embedder.linear_1.weight", "time_embedding.0.weight"},
      {"condition_embedder.time_embedder.linear_2.weight", "time_embedding.2.weight"},
      {"condition_embedder.time_proj.bias", "time_projection.1.bias"},
      {"scale_shift_table", "head.modulation"},
      {"proj_out.weight", "head.head.weight"},
      {"blocks.0.scale_shift_table", "blocks.0.modulation"},
      {"blocks.39.attn1.to_q.weight", "blocks.39.self_attn.q.weight"},
      {"blocks.39.attn1.to_k.bias", "blocks.39.self_attn.k.bias"},
      {"blocks.1.attn1.to_v.weight", "blocks.1.self_attn.v.weight"},
      {"blocks.1.attn1.to_out.0.weight", "blocks.1.self_attn.o.weight"},
      {"blocks.1.attn1.norm_q.weight", "blocks.1.self_attn.norm_q.weight"},
      {"blocks.1.attn2.to_q.weight", "blocks.1.cross_attn.q.weight"},
      {"blocks.1.attn2.to_out.0.bias", "blocks.1.cross_attn.o.bias"},
      {"blocks.1.attn2.norm_k.weight", "blocks.1.cross_attn.norm_k.weight"},
      {"blocks.1.norm2.weight", "blocks.1.norm3.weight"},
      {"blocks.1.ffn.net.0.proj.weight", "blocks.1.ffn.0.weight"},
      {"blocks.1.ffn.net.2.bias", "blocks.1.ffn.2.bias"},
  };
  for (const auto& [ours, theirs] : kPairs) EXPECT_EQ(original_wan_name(ours), theirs);
}

}  // namespace
}  // namespace calibatt
