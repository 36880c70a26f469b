// What can be known of TT-NN and of the chips before one is opened.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rust/cxx.h"

namespace ttnn_sys {

struct ChipOwner;

// The file that _ttnncpp.so was loaded from.
rust::String library_path();

// The first chip that another process holds. TT-NN itself would wait for it without end.
ChipOwner chip_owner();

std::size_t device_count();
rust::String arch_name();

// Gives back the chips that device_count() and open_mesh() took hold of. No mesh may be open.
void release_devices();

}  // namespace ttnn_sys
