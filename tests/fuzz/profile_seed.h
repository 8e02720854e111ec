// Profiles as small as they can be, of every kind, for the fuzz target of their files and its seeds.
#pragma once

#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"

namespace calibatt::fuzz {

inline ProfileHeader seed_header(Measured measured, Ranking code_ranking = Ranking::kEnergy) {
  ProfileHeader header;
  header.geometry.frames = 2, header.geometry.height = 4, header.geometry.width = 5;
  header.geometry.heads = 2, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;
  header.num_layers = 1;
  header.sigmas = {1.0, 0.6, 0.3};
  header.measured = measured;
  header.anchor_rows = {2};
  header.code_ranking = code_ranking;
  if (measured == Measured::kLevels) header.recorded_steps = {0, 2};
  if (measured == Measured::kLevels && code_ranking == Ranking::kEnergy) header.anchor_rows.clear();
  header.provenance.num_prompts = 1;
  return header;
}

inline StepGrowth seed_growth() {
  StepGrowth growth;
  growth.factors = {{1, 3.25}, {2, 1.5}};
  growth.mask_changes = {{0, 4.5}, {2, 0.125}};
  growth.latents_error = 0.0625;
  growth.psnr_db = 31.5;
  return growth;
}

}  // namespace calibatt::fuzz
