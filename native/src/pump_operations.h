// pumpFrom and pumpTo of a Channel (native/addon.ts) from their arguments to a queued operation. Called by channel.cc. JS thread.
#pragma once
#include <napi.h>

#include <memory>

#include "channel_lane.h"

namespace ferry {

/** Null with an exception pending when an argument is refused. */
std::shared_ptr<Operation> PumpFromOperation(const Napi::CallbackInfo& info);
std::shared_ptr<Operation> PumpToOperation(const Napi::CallbackInfo& info);

}  // namespace ferry
