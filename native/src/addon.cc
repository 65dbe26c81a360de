// Entry of the addon kvm_node: hands each part its turn, and takes in the error classes of native/errno.ts.
// Runs once per Node environment, on its JS thread. The contract is native/addon.ts.
#include "addon.h"

#include "async_task.h"
#include "errors.h"

namespace ferry {
namespace {

Napi::Value AdoptErrors(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() < 2 || !info[0].IsFunction() || !info[1].IsFunction()) {
    return ThrowType(env, "adoptErrors: two classes are needed");
  }
  AddonData* data = AddonData::Of(env);
  data->sysError = Napi::Persistent(info[0].As<Napi::Function>());
  data->streamError = Napi::Persistent(info[1].As<Napi::Function>());
  return env.Undefined();
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new AddonData());
  AddonData::Of(env)->tasks = OpenTaskPort(env);
  exports.Set("adoptErrors", Napi::Function::New(env, AdoptErrors, "adoptErrors"));
  InitIoctl(env, exports);
  InitGuestRam(env, exports);
  InitPageBitmap(env, exports);
  InitDirtyRing(env, exports);
  InitVcpuLoop(env, exports);
  InitFdWatch(env, exports);
  InitSockets(env, exports);
  InitFdIo(env, exports);
  InitChannel(env, exports);
  InitTracer(env, exports);
  return exports;
}

}  // namespace
}  // namespace ferry

// The macro wants a plain name.
static Napi::Object InitAddon(Napi::Env env, Napi::Object exports) { return ferry::Init(env, exports); }
NODE_API_MODULE(kvm_node, InitAddon)
