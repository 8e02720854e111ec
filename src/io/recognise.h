#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace calibatt {

// What lies where a model was expected. Each answer says what was found and what to do about it, to be put behind
// `PATH: `; empty: nothing that is known. All are made for messages of files that could not be used: they may look into
// folders, but never throw.

/// By the first bytes of a file: a Git LFS pointer, a web page, GGUF, an archive, nothing but zeros, …
std::string recognise_bytes(std::span<const unsigned char> bytes);

/// By the first bytes of a file, of what people take for another file: "a web page", "JSON", "a text file"; empty: of
/// nothing that is plain text.
std::string recognise_text(std::span<const unsigned char> bytes);

/// Weights in a folder that has none under the names that are read: a variant, another format, half a download, shards
/// without their index, links to nowhere, a LoRA.
std::string recognise_weights(const std::string& folder);

/// The name of a LoRA's file in a folder, by what it is called; empty: none. Like the answers above, never throws.
std::string find_lora(const std::string& folder);

/// A path that was given as a model and is none: a name on the Hugging Face hub, a cache's folder, one part of a model,
/// a single file.
std::string recognise_model_path(const std::string& path);

/// By the names of tensors, in any order: a LoRA, or a model whose names have a prefix.
std::string recognise_tensor_names(const std::vector<std::string>& names);

/// By the names of tensors, which part of a Wan model they are, with the flag that takes it: "the autoencoder (VAE) of
/// a model: give it with --vae".
std::string recognise_part(const std::vector<std::string>& names);

/// For a dtype that is not read: what it is and what to do. `names`: of all tensors, among which scales may be.
std::string recognise_dtype(const std::string& dtype, const std::vector<std::string>& names);

}  // namespace calibatt
