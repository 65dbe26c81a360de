// What every part of the addon exports to addon.cc: one Init function per file, which puts its functions into `exports`.
// A new .cc is compiled in by binding.gyp's wildcard; declare its Init here and call it in addon.cc.
#pragma once
#include <napi.h>

namespace ferry {

void InitIoctl(Napi::Env env, Napi::Object exports);
void InitGuestRam(Napi::Env env, Napi::Object exports);
void InitPageBitmap(Napi::Env env, Napi::Object exports);
void InitDirtyRing(Napi::Env env, Napi::Object exports);
void InitVcpuLoop(Napi::Env env, Napi::Object exports);
void InitFdWatch(Napi::Env env, Napi::Object exports);
void InitSockets(Napi::Env env, Napi::Object exports);
void InitFdIo(Napi::Env env, Napi::Object exports);
void InitChannel(Napi::Env env, Napi::Object exports);
void InitTracer(Napi::Env env, Napi::Object exports);

}  // namespace ferry
