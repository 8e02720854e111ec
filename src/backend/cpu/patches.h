#pragma once

#include "backend/transformer_ops.h"

namespace calibatt::cpu {

void patchify(const Tensor& latents, const PatchLayout& layout, Tensor& tokens);
void unpatchify(const Tensor& tokens, const PatchLayout& layout, Tensor& latents);

}  // namespace calibatt::cpu
