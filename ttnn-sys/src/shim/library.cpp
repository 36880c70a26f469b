#include "ttnn-sys/src/shim/library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include <tt-metalium/hal.hpp>
#include <tt-metalium/host_api.hpp>
#include <tt-metalium/tt_metal.hpp>
#include <ttnn/operations/core/core.hpp>
#include <umd/device/pcie/pci_device.hpp>
#include <umd/device/utils/robust_mutex.hpp>

#include "ttnn-sys/src/bridge.rs.h"

namespace ttnn_sys {

rust::String library_path() {
    Dl_info info{};
    const auto* symbol = reinterpret_cast<const void*>(&ttnn::operations::core::reallocate);
    if (dladdr(symbol, &info) == 0 || info.dli_fname == nullptr) {
        throw std::runtime_error("the dynamic linker does not say where _ttnncpp.so was loaded from");
    }
    return info.dli_fname;
}

ChipOwner chip_owner() {
    for (const int chip : tt::umd::PCIDevice::enumerate_devices()) {
        // The name that UMD gives the lock it holds while a chip is open.
        tt::umd::RobustMutex lock("CHIP_IN_USE_" + std::to_string(chip) + "_PCIe");
        lock.initialize();
        if (const auto owner = lock.probe_lock()) {
            return ChipOwner{chip, owner->first};
        }
        lock.unlock();
    }
    return ChipOwner{-1, 0};
}

std::size_t device_count() { return tt::tt_metal::GetNumAvailableDevices(); }

rust::String arch_name() { return tt::tt_metal::hal::get_arch_name(); }

void release_devices() { tt::tt_metal::detail::ReleaseOwnership(); }

}  // namespace ttnn_sys
