#pragma once

#include <string>

namespace calibatt {

/// Of the weights and settings of a transformer's folder in diffusers' layout, in the scheme that `like` is of
/// (io/fingerprint.h; empty: the present one); `like` itself where that is of the same weights. What it is of is in its
/// config.json. Reads all weights. Throws Error(kNotFound / kUnreadable / kFormat).
std::string folder_fingerprint(const std::string& folder, const std::string& like);

}  // namespace calibatt
