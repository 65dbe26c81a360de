// See vcpu_loop.h. All of it runs on the JS thread; what vCPU threads do is in vcpu_thread.cc.
#include "vcpu_loop.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "addon.h"
#include "guest_ram.h"

namespace ferry {
namespace {

/** The longest that one callback keeps the event loop; main-job.md: the JS thread never holds a slice much above 1 ms. */
constexpr uint64_t kSliceNs = 1'000'000;
/** How often posted writes are replayed while they keep coming and nothing else happens. Each time is a wake-up of the JS thread. */
constexpr uint64_t kDrainMs = 4;

void CpuRelax() { __builtin_ia32_pause(); }

}  // namespace

VcpuLoop::VcpuLoop(const Napi::CallbackInfo& info) : ObjectWrap(info), shared_(std::make_shared<VcpuShared>()) {
  Napi::Env env = info.Env();
  closed_ = true;  // until everything is there
  Napi::Value exit = PropertyOf(info[0], "exit");
  Napi::Value posted = PropertyOf(info[0], "posted");
  Napi::Value failed = PropertyOf(info[0], "failed");
  if (!exit.IsFunction() || !posted.IsFunction() || !failed.IsFunction()) {
    ThrowType(env, "createVcpuLoop: handlers exit, posted and failed are needed");
    return;
  }
  std::optional<uint64_t> hot = ReadSize(PropertyOf(info[1], "hotWindowUs"), "hotWindowUs");
  if (!hot) return;
  if (shared_->mailbox.fd() < 0) {
    ThrowSys(env, "eventfd", errno);
    return;
  }
  hotWindowNs_ = std::min<uint64_t>(*hot, 1000) * 1000;
  handlers_ = Napi::Persistent(info[0].As<Napi::Object>());
  onExit_ = Napi::Persistent(exit.As<Napi::Function>());
  onPosted_ = Napi::Persistent(posted.As<Napi::Function>());
  onFailed_ = Napi::Persistent(failed.As<Napi::Function>());
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(env, &loop);
  handles_ = new Handles{{}, {}, this, 2, shared_};
  int refused = uv_poll_init(loop, &handles_->poll, shared_->mailbox.fd());
  if (refused != 0) {
    delete handles_;
    handles_ = nullptr;
    ThrowSys(env, "uv_poll_init", -refused);
    return;
  }
  uv_timer_init(loop, &handles_->drain);
  handles_->poll.data = handles_;
  handles_->drain.data = handles_;
  uv_poll_start(&handles_->poll, UV_READABLE, [](uv_poll_t* poll, int, int) {
    if (VcpuLoop* self = static_cast<Handles*>(poll->data)->loop) self->OnWake();
  });
  // Ours is alive as long as its threads may be: until close().
  Ref();
  closed_ = false;
}

VcpuLoop::~VcpuLoop() { Shut(); }

Napi::Function VcpuLoop::Define(Napi::Env env) {
  return DefineClass(env, "VcpuLoop",
                     {
                         InstanceMethod<&VcpuLoop::AddVcpu>("addVcpu"),
                         InstanceMethod<&VcpuLoop::Start>("start"),
                         InstanceMethod<&VcpuLoop::Pause>("pause"),
                         InstanceMethod<&VcpuLoop::Resume>("resume"),
                         InstanceMethod<&VcpuLoop::AddFast>("addFast"),
                         InstanceMethod<&VcpuLoop::RemoveFast>("removeFast"),
                         InstanceMethod<&VcpuLoop::DrainPosted>("drainPosted"),
                         InstanceAccessor<&VcpuLoop::Stats>("stats"),
                         InstanceMethod<&VcpuLoop::Close>("close"),
                     });
}

bool VcpuLoop::Open(Napi::Env env) {
  if (!closed_) return true;
  ThrowType(env, "VcpuLoop is closed");
  return false;
}

VcpuThread* VcpuLoop::Find(uint64_t index) const {
  return index < vcpus_.size() && vcpus_[index] ? vcpus_[index]->thread.get() : nullptr;
}

Napi::Value VcpuLoop::Invoke(const Napi::FunctionReference& callback, std::initializer_list<napi_value> args) {
  return CallFromLoop(Env(), callback.Value(), args, handlers_.Value());
}

Napi::Value VcpuLoop::AddVcpu(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  std::optional<int> vmFd = ReadFd(info[0], "vmFd");
  if (!vmFd) return env.Undefined();
  std::optional<uint64_t> index = ReadSize(info[1], "index");
  if (!index) return env.Undefined();
  std::optional<uint64_t> runSize = ReadSize(info[2], "runSize");
  if (!runSize) return env.Undefined();
  if (*index >= ExitMailbox::kMaxVcpus) return ThrowRange(env, "at most 64 vCPUs");
  if (Find(*index) != nullptr) return ThrowRange(env, "there is such a vCPU already");
  if (*runSize < sizeof(struct kvm_run) || *runSize > (1 << 20)) return ThrowRange(env, "runSize is not KVM_GET_VCPU_MMAP_SIZE");
  if (running_ || !pauses_.empty()) return ThrowType(env, "addVcpu: the vCPUs are running");
  int fd = ioctl(*vmFd, KVM_CREATE_VCPU, *index);
  if (fd < 0) return ThrowSys(env, "KVM_CREATE_VCPU", errno);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  void* base = mmap(nullptr, *runSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) {
    int err = errno;
    close(fd);
    return ThrowSys(env, "mmap(kvm_run)", err);
  }
  auto mapping = std::make_shared<Mapping>(-1, static_cast<uint8_t*>(base), *runSize);
  auto vcpu = std::make_unique<Vcpu>();
  vcpu->thread = std::make_unique<VcpuThread>(shared_, static_cast<uint32_t>(*index), fd, mapping);
  Napi::Value buffer = ExternalBuffer(env, mapping, 0, *runSize);
  if (env.IsExceptionPending()) return env.Undefined();
  int failed = vcpu->thread->Launch();
  if (failed != 0) return ThrowSys(env, "pthread_create", failed);
  vcpu->runBuffer = Napi::Persistent(buffer.As<Napi::ArrayBuffer>());
  Napi::Object object = Napi::Object::New(env);
  object.Set("fd", Napi::Number::New(env, fd));
  object.Set("index", Napi::Number::New(env, static_cast<double>(*index)));
  object.Set("threadId", Napi::Number::New(env, vcpu->thread->tid()));
  object.Set("run", buffer);
  if (vcpus_.size() <= *index) vcpus_.resize(*index + 1);
  vcpus_[*index] = std::move(vcpu);
  return object;
}

Napi::Value VcpuLoop::Start(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  if (!pauses_.empty()) return ThrowType(env, "start: a pause is under way");
  if (running_) return env.Undefined();
  running_ = true;
  shared_->pausing.store(false, std::memory_order_seq_cst);
  for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) {
    if (vcpu) vcpu->thread->Go();
  }
  return env.Undefined();
}

Napi::Value VcpuLoop::Resume(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  std::optional<uint64_t> index = ReadSize(info[0], "index");
  if (!index) return env.Undefined();
  VcpuThread* vcpu = Find(*index);
  if (vcpu == nullptr) return ThrowRange(env, "no such vCPU");
  if (vcpu == serving_) {
    resumed_ = true;  // its handler is still on the stack and may yet write the answer
  } else if (vcpu->held) {
    vcpu->Go();
  }
  return env.Undefined();
}

bool VcpuLoop::AllParked() const {
  for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) {
    if (vcpu && vcpu->thread->state() != VcpuThread::kParked) return false;
  }
  return true;
}

Napi::Value VcpuLoop::Pause(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env)) return env.Undefined();
  Deferred deferred = Deferred::New(env);
  bool first = pauses_.empty();
  pauses_.push_back(deferred);
  if (first) {
    shared_->pausing.store(true, std::memory_order_seq_cst);
    for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) {
      if (!vcpu || vcpu->thread->state() == VcpuThread::kParked) continue;
      vcpu->thread->Kick();
      // Its handler is on the stack: ServeExit goes on when that returns.
      if (vcpu->thread.get() == serving_) continue;
      // One that exit() left parked has an access outstanding too: its next KVM_RUN completes it.
      if (vcpu->thread->held && vcpu->thread->failure() != 0) {
        vcpu->thread->held = false;
        vcpu->thread->ParkFailed();
      } else if (vcpu->thread->held) {
        vcpu->thread->Go();
      }
    }
    FinishPause();
  }
  return deferred.Promise();
}

void VcpuLoop::FinishPause() {
  if (pauses_.empty() || !AllParked()) return;
  // No producer is left, so one pass empties the ring.
  Drain();
  if (closed_) return;
  running_ = false;
  std::vector<Deferred> done = std::move(pauses_);
  pauses_.clear();
  for (Deferred& deferred : done) deferred.Resolve(Env().Undefined());
}

void VcpuLoop::OnWake() {
  Napi::HandleScope scope(Env());
  ExitMailbox& mailbox = shared_->mailbox;
  mailbox.Woken();
  // Keeps the threads' shared part over a close() from within a handler.
  std::shared_ptr<VcpuShared> kept = shared_;
  uint64_t now = uv_hrtime();
  const uint64_t sliceEnd = now + kSliceNs;
  uint64_t hotUntil = 0;
  for (;;) {
    bool answered = Serve();
    if (closed_) return;
    if (answered) hotUntil = uv_hrtime() + hotWindowNs_;
    while (hotWindowNs_ != 0 && !mailbox.HasWord() && (now = uv_hrtime()) < hotUntil && now < sliceEnd) {
      for (int i = 0; i < 16 && !mailbox.HasWord(); i++) CpuRelax();
      // Where the machine is busy the vCPU that we wait for may need this very CPU: without the yield a hot window costs more than it saves
      // (measured with three runnable threads on two CPUs: 28 us an exit without, 13.5 with, 15 without any hot window).
      sched_yield();
    }
    if (hotWindowNs_ != 0 && mailbox.HasWord() && uv_hrtime() < sliceEnd) continue;
    mailbox.Sleep();
    bool missed = mailbox.HasWord() || (!mailbox.draining.load() && !shared_->fast.ring.Empty());
    // What came meanwhile is served in the next turn of the event loop, after what else waits there.
    if (missed) mailbox.Wake();
    return;
  }
}

/** True when an exit was answered. */
bool VcpuLoop::Serve() {
  bool drained = Drain();
  if (closed_) return false;
  uint64_t waiting = shared_->mailbox.TakeExits();
  for (uint64_t left = waiting; left != 0 && !closed_; left &= left - 1) {
    VcpuThread* vcpu = Find(static_cast<uint64_t>(__builtin_ctzll(left)));
    if (vcpu != nullptr) ServeExit(vcpu);
  }
  if (closed_) return false;
  if (drained && !shared_->mailbox.draining.load()) {
    shared_->mailbox.draining.store(true, std::memory_order_seq_cst);
    uv_timer_start(&handles_->drain, [](uv_timer_t* timer) {
      if (VcpuLoop* self = static_cast<Handles*>(timer->data)->loop) self->OnDrainTimer();
    }, kDrainMs, 0);
  }
  if (shared_->mailbox.TakeParked()) FinishPause();
  return waiting != 0;
}

void VcpuLoop::ServeExit(VcpuThread* vcpu) {
  if (vcpu->state() != VcpuThread::kWaiting || vcpu->held) return;
  Napi::HandleScope scope(Env());
  uint32_t index = vcpu->index;
  napi_value number = Napi::Number::New(Env(), index);
  int failure = vcpu->failure();
  bool again = false;
  Drain();
  if (closed_) return;
  vcpu->held = true;
  serving_ = vcpu;
  resumed_ = false;
  if (failure != 0) {
    Invoke(onFailed_, {number, Napi::Number::New(Env(), failure)});
  } else {
    Napi::Value answer = Invoke(onExit_, {number});
    again = answer.IsBoolean() && answer.As<Napi::Boolean>().Value();
  }
  serving_ = nullptr;
  // The handler may have closed the loop, resumed this vCPU, or begun a pause.
  if (closed_) return;
  if (failure != 0 && !pauses_.empty()) {
    vcpu->held = false;
    vcpu->ParkFailed();
    FinishPause();
  } else if (again || resumed_ || (failure == 0 && !pauses_.empty())) {
    vcpu->Go();
  }
}

/** Replays what is in the ring; true when there was something. A handler may close the loop. */
bool VcpuLoop::Drain() {
  std::shared_ptr<VcpuShared> kept = shared_;
  PostedWrite write;
  bool any = false;
  while (!closed_ && kept->fast.ring.Pop(&write)) {
    any = true;
    Napi::HandleScope scope(Env());
    Invoke(onPosted_, {Napi::Number::New(Env(), write.range), Napi::Number::New(Env(), write.offset),
                       Napi::Number::New(Env(), write.width), Napi::Number::New(Env(), write.value)});
  }
  return any;
}

void VcpuLoop::OnDrainTimer() {
  Napi::HandleScope scope(Env());
  std::shared_ptr<VcpuShared> kept = shared_;
  bool any = Drain();
  if (closed_) return;
  if (!any) {
    kept->mailbox.draining.store(false, std::memory_order_seq_cst);
    if (kept->fast.ring.Empty()) return;
    kept->mailbox.draining.store(true, std::memory_order_seq_cst);
  }
  uv_timer_start(&handles_->drain, handles_->drain.timer_cb, kDrainMs, 0);
}

Napi::Value VcpuLoop::Stats(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Counts counts = past_;
  for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) {
    if (vcpu) counts.Add(*vcpu->thread);
  }
  Napi::Object stats = Napi::Object::New(env);
  stats.Set("exits", Napi::Number::New(env, static_cast<double>(counts.exits)));
  stats.Set("fastReads", Napi::Number::New(env, static_cast<double>(counts.fastReads)));
  stats.Set("posted", Napi::Number::New(env, static_cast<double>(counts.posted)));
  stats.Set("passed", Napi::Number::New(env, static_cast<double>(counts.passed)));
  return stats;
}

void VcpuLoop::Counts::Add(const VcpuThread& thread) {
  exits += thread.exits.load(std::memory_order_relaxed);
  fastReads += thread.fastReads.load(std::memory_order_relaxed);
  posted += thread.posted.load(std::memory_order_relaxed);
  passed += thread.passed.load(std::memory_order_relaxed);
}

void VcpuLoop::Shut() {
  if (handles_ == nullptr) return;
  closed_ = true;
  shared_->pausing.store(true, std::memory_order_seq_cst);
  for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) {
    if (vcpu) vcpu->thread->Kick();
  }
  for (const std::unique_ptr<Vcpu>& vcpu : vcpus_) {
    if (vcpu) vcpu->thread->QuitAndJoin();
  }
  handles_->loop = nullptr;
  auto closed = [](uv_handle_t* handle) {
    auto* handles = static_cast<Handles*>(handle->data);
    if (--handles->open == 0) delete handles;
  };
  uv_close(reinterpret_cast<uv_handle_t*>(&handles_->poll), closed);
  uv_close(reinterpret_cast<uv_handle_t*>(&handles_->drain), closed);
  handles_ = nullptr;
}

Napi::Value VcpuLoop::Close(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Deferred deferred = Deferred::New(env);
  if (handles_ != nullptr) {
    Shut();
    for (std::unique_ptr<Vcpu>& vcpu : vcpus_) {
      if (!vcpu) continue;
      DetachBuffer(env, vcpu->runBuffer);
      past_.Add(*vcpu->thread);
    }
    vcpus_.clear();  // the fds go with them
    shared_->fast.Clear();
    shadows_.clear();
    std::vector<Deferred> waiting = std::move(pauses_);
    pauses_.clear();
    for (Deferred& pause : waiting) pause.Reject(SysErrorValue(env, "pause", ECANCELED));
    Unref();
  }
  deferred.Resolve(env.Undefined());
  return deferred.Promise();
}

namespace {

Napi::Value CreateVcpuLoop(const Napi::CallbackInfo& info) {
  return AddonData::Of(info.Env())->vcpuLoop.New({info[0], info[1]});
}

}  // namespace

void InitVcpuLoop(Napi::Env env, Napi::Object exports) {
  AddonData::Of(env)->vcpuLoop = Napi::Persistent(VcpuLoop::Define(env));
  exports.Set("createVcpuLoop", Napi::Function::New(env, CreateVcpuLoop, "createVcpuLoop"));
}

}  // namespace ferry
