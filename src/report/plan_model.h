#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "plan/plan.h"

namespace calibatt {

/// A plan as a page shows it. `name`: what people call it, its file. Masks take at most `max_mask_bytes` before base64;
/// what that leaves out is said in left_out. A page adds measured[{title, kind, map}], of the calibration.
///
/// Keys: name, checksum, steps, layers, heads, entries, sigmas[step], reuse[step], entry[step], energy[step] (null
/// where another budget chose), density, density_map[step][layer] (null in a step without a forward), head_density
/// (base64 of u16 [entry][layer][head], 65535 is 1), head_kind (base64 of u8 [entry][layer][head], 1: has intervals, 2:
/// anchored), grid {frames, height, width}, blocks {query, key, anchored, query_tokens, key_tokens}, key_block,
/// query_block, anchor_block (base64 of u16 [token in raster order]; absent where they are not needed), masks {rows,
/// columns, exact, steps, data} or null, facts[[name, value]], text (what `calibatt inspect` prints), errors
/// {attention, latents_predicted, latents_measured, psnr_predicted, psnr_measured}, transformer[step] (empty where
/// there is one), left_out.
nlohmann::json plan_model(const Plan& plan, const std::string& name, const std::string& checksum,
                          size_t max_mask_bytes);

}  // namespace calibatt
