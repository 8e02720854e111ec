#pragma once

#include <string>

#include "io/mapped_tensors.h"

namespace calibatt {

/// Opens a state_dict that torch.save wrote (PyTorch 1.6 or newer: a zip archive of a pickled dictionary and one record
/// per storage). Only what describes the tensors is read, and nothing in it is run: plain dictionaries of tensors are
/// understood, all else is refused by name. Tensors are views into the mapped file, several may share one storage.
/// Throws Error(kNotFound / kUnreadable), and Error(kFormat) (`FILE: tensor "…": reason; what to do`) for anything that
/// is not sound, is compressed, big-endian or not contiguous, or of PyTorch's old format.
MappedTensors open_torch_checkpoint(const std::string& path);

}  // namespace calibatt
