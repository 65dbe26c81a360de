// VcpuLoop of native/addon.ts: the JS thread's side of all vCPU threads of one machine. Serves exits when the mailbox wakes the event
// loop, stays hot for a while after an answer, replays posted writes before it does, and carries out start, pause and close.
#pragma once
#include <napi.h>
#include <uv.h>

#include <map>
#include <memory>
#include <vector>

#include "errors.h"
#include "vcpu_thread.h"

namespace ferry {

class VcpuLoop : public Napi::ObjectWrap<VcpuLoop> {
 public:
  explicit VcpuLoop(const Napi::CallbackInfo& info);
  ~VcpuLoop() override;
  static Napi::Function Define(Napi::Env env);

 private:
  /** Of VcpuThread's counters. */
  struct Counts {
    uint64_t exits = 0;
    uint64_t fastReads = 0;
    uint64_t posted = 0;
    uint64_t passed = 0;
    void Add(const VcpuThread& thread);
  };
  struct Vcpu {
    std::unique_ptr<VcpuThread> thread;
    Napi::Reference<Napi::ArrayBuffer> runBuffer;
  };
  /** The uv handles outlive the object until libuv has closed them. */
  struct Handles {
    uv_poll_t poll;
    uv_timer_t drain;
    VcpuLoop* loop;
    int open;
    /** The mailbox's fd must not be closed while it is polled. */
    std::shared_ptr<VcpuShared> shared;
  };

  // Called from JS.
  Napi::Value AddVcpu(const Napi::CallbackInfo& info);
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value Pause(const Napi::CallbackInfo& info);
  Napi::Value Resume(const Napi::CallbackInfo& info);
  Napi::Value AddFast(const Napi::CallbackInfo& info);
  Napi::Value RemoveFast(const Napi::CallbackInfo& info);
  Napi::Value DrainPosted(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  // Called from the event loop.
  void OnWake();
  void OnDrainTimer();

  bool Serve();
  void ServeExit(VcpuThread* vcpu);
  bool Drain();
  void FinishPause();
  bool AllParked() const;
  void Shut();
  bool Open(Napi::Env env);
  VcpuThread* Find(uint64_t index) const;
  Napi::Value Invoke(const Napi::FunctionReference& callback, std::initializer_list<napi_value> args);

  std::shared_ptr<VcpuShared> shared_;
  Handles* handles_ = nullptr;
  uint64_t hotWindowNs_ = 0;
  Napi::ObjectReference handlers_;
  Napi::FunctionReference onExit_;
  Napi::FunctionReference onPosted_;
  Napi::FunctionReference onFailed_;
  /** By index. */
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::vector<Deferred> pauses_;
  std::map<uint32_t, Napi::Reference<Napi::Uint8Array>> shadows_;
  uint32_t nextRange_ = 1;
  bool running_ = false;
  /** The vCPU whose handler is on the stack, and whether that handler asked for its resume. */
  VcpuThread* serving_ = nullptr;
  bool resumed_ = false;
  /** Of vCPUs that are closed. */
  Counts past_;
  bool closed_ = false;
};

}  // namespace ferry
