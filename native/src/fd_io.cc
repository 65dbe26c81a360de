// sendFds and recvFds (SCM_RIGHTS over a UNIX socket; net.Socket silently drops descriptors), pread and pwrite of native/addon.ts.
// JS thread, never waiting: a socket with nothing to read is SysError EAGAIN, watchFd says when to come back. preadAsync and pwriteAsync
// do wait, on a thread of their own: an access to a migration region may hold its caller while the device works.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "addon.h"
#include "async_task.h"
#include "copied_bytes.h"
#include "errors.h"
#include "region_fd.h"

namespace ferry {
namespace {

/** SCM_MAX_FD of the kernel (net/scm.h). */
constexpr uint64_t kMaxFds = 253;

Napi::Value SendFds(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<int> socket = ReadFd(info[0], "socket");
  if (!socket) return env.Undefined();
  std::optional<Bytes> bytes = ReadBytes(info[1], "bytes");
  if (!bytes) return env.Undefined();
  if (!info[2].IsArray()) return ThrowType(env, "fds must be an array");
  Napi::Array given = info[2].As<Napi::Array>();
  if (given.Length() > kMaxFds) return ThrowRange(env, "a message carries 253 descriptors at most");
  if (bytes->length == 0) return ThrowRange(env, "descriptors need at least one byte to travel with");
  std::vector<int> fds;
  for (uint32_t i = 0; i < given.Length(); i++) {
    std::optional<int> fd = ReadFd(given.Get(i), "fd");
    if (!fd) return env.Undefined();
    fds.push_back(*fd);
  }
  std::vector<uint8_t> control(CMSG_SPACE(fds.size() * sizeof(int)));
  iovec vector = {bytes->data, bytes->length};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    memcpy(CMSG_DATA(head), fds.data(), fds.size() * sizeof(int));
  }
  size_t done = 0;
  while (done < bytes->length) {
    ssize_t sent = sendmsg(*socket, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return ThrowSys(env, "sendmsg", errno);
    // The descriptors went with the first bytes; the rest goes alone.
    done += sent;
    vector = {bytes->data + done, bytes->length - done};
    message.msg_control = nullptr;
    message.msg_controllen = 0;
  }
  return env.Undefined();
}

Napi::Value RecvFds(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<int> socket = ReadFd(info[0], "socket");
  if (!socket) return env.Undefined();
  std::optional<Bytes> into = ReadBytes(info[1], "into");
  if (!into) return env.Undefined();
  std::optional<uint64_t> most = ReadSize(info[2], "maxFds");
  if (!most) return env.Undefined();
  std::vector<uint8_t> control(CMSG_SPACE(std::min(*most, kMaxFds) * sizeof(int)));
  iovec vector = {into->data, into->length};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got;
  do {
    got = recvmsg(*socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return ThrowSys(env, "recvmsg", errno);
  std::vector<int> fds;
  for (cmsghdr* head = CMSG_FIRSTHDR(&message); head != nullptr; head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    size_t at = fds.size();
    fds.resize(at + count);
    memcpy(fds.data() + at, CMSG_DATA(head), count * sizeof(int));
  }
  // CMSG_SPACE rounds up, so one more than asked for may fit.
  if ((message.msg_flags & MSG_CTRUNC) != 0 || fds.size() > *most) {
    for (int fd : fds) close(fd);
    return ThrowSys(env, "recvmsg: more descriptors than expected", EMSGSIZE);
  }
  Napi::Array received = Napi::Array::New(env, fds.size());
  for (size_t i = 0; i < fds.size(); i++) received.Set(static_cast<uint32_t>(i), Napi::Number::New(env, fds[i]));
  Napi::Object result = Napi::Object::New(env);
  result.Set("bytes", static_cast<double>(got));
  result.Set("fds", received);
  return result;
}

struct At {
  int fd;
  off_t offset;
  Bytes bytes;
};

std::optional<At> ReadAt(const Napi::CallbackInfo& info) {
  std::optional<int> fd = ReadFd(info[0], "fd");
  if (!fd) return std::nullopt;
  std::optional<uint64_t> offset = ReadSize(info[1], "offset");
  if (!offset) return std::nullopt;
  std::optional<Bytes> bytes = ReadBytes(info[2], "bytes");
  if (!bytes) return std::nullopt;
  if (*offset > INT64_MAX) {
    ThrowRange(info.Env(), "offset must be below 2^63");
    return std::nullopt;
  }
  return At{*fd, static_cast<off_t>(*offset), *bytes};
}

Napi::Value Pread(const Napi::CallbackInfo& info) {
  std::optional<At> at = ReadAt(info);
  if (!at) return info.Env().Undefined();
  ssize_t got = pread(at->fd, at->bytes.data, at->bytes.length, at->offset);
  if (got < 0) return ThrowSys(info.Env(), "pread", errno);
  return Napi::Number::New(info.Env(), static_cast<double>(got));
}

Napi::Value Pwrite(const Napi::CallbackInfo& info) {
  std::optional<At> at = ReadAt(info);
  if (!at) return info.Env().Undefined();
  ssize_t put = pwrite(at->fd, at->bytes.data, at->bytes.length, at->offset);
  if (put < 0) return ThrowSys(info.Env(), "pwrite", errno);
  return Napi::Number::New(info.Env(), static_cast<double>(put));
}

/** preadAsync or pwriteAsync between the JS thread and its own. */
struct AsyncCall {
  const char* name;
  bool writes;
  uint64_t offset;
  CopiedBytes bytes;
  std::unique_ptr<RegionFd> fd;
  ssize_t result = 0;

  void Run() {
    std::vector<uint8_t>& copy = bytes.copy;
    result = writes ? fd->WriteAt(copy.data(), copy.size(), offset) : fd->ReadAt(copy.data(), copy.size(), offset);
    // Here, not with the call: that is left behind when the environment has ended, and a device would stay in use.
    fd.reset();
  }
};

Napi::Value StartAsync(const Napi::CallbackInfo& info, const char* name, bool writes) {
  Napi::Env env = info.Env();
  std::optional<At> at = ReadAt(info);
  if (!at) return env.Undefined();
  auto fd = std::make_unique<RegionFd>(at->fd);
  if (fd->error() != 0) {
    auto deferred = Deferred::New(env);
    deferred.Reject(SysErrorValue(env, name, fd->error()));
    return deferred.Promise();
  }
  auto call = std::make_shared<AsyncCall>(
      AsyncCall{name, writes, static_cast<uint64_t>(at->offset), CopiedBytes(info[2], at->bytes), std::move(fd)});
  if (!writes) call->bytes.Keep();
  return RunOnThread(env, name, {[call] { call->Run(); },
                                 [call](Napi::Env env, const Deferred& deferred) {
                                   if (call->result < 0) {
                                     return deferred.Reject(SysErrorValue(env, call->name, static_cast<int>(-call->result)));
                                   }
                                   if (!call->writes) call->bytes.CopyBack(static_cast<size_t>(call->result));
                                   deferred.Resolve(Napi::Number::New(env, static_cast<double>(call->result)));
                                 }});
}

Napi::Value PreadAsync(const Napi::CallbackInfo& info) { return StartAsync(info, "pread", false); }
Napi::Value PwriteAsync(const Napi::CallbackInfo& info) { return StartAsync(info, "pwrite", true); }

}  // namespace

void InitFdIo(Napi::Env env, Napi::Object exports) {
  exports.Set("sendFds", Napi::Function::New(env, SendFds, "sendFds"));
  exports.Set("recvFds", Napi::Function::New(env, RecvFds, "recvFds"));
  exports.Set("pread", Napi::Function::New(env, Pread, "pread"));
  exports.Set("pwrite", Napi::Function::New(env, Pwrite, "pwrite"));
  exports.Set("preadAsync", Napi::Function::New(env, PreadAsync, "preadAsync"));
  exports.Set("pwriteAsync", Napi::Function::New(env, PwriteAsync, "pwriteAsync"));
}

}  // namespace ferry
