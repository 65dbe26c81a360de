// connect, listen, accept, localAddress and closeListener of native/addon.ts: TCP with numeric hosts, and UNIX. connect and accept wait
// on native threads of their own; all else is done at once on the JS thread.
#include "sockets.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "addon.h"
#include "async_task.h"
#include "errors.h"
#include "wire.h"

namespace ferry {

void TuneStream(int fd) {
  constexpr int kSilenceMs = 30000;
  const struct {
    int name;
    int value;
  } options[] = {{TCP_NODELAY, 1}, {TCP_KEEPIDLE, 10}, {TCP_KEEPINTVL, 5}, {TCP_KEEPCNT, 4}, {TCP_USER_TIMEOUT, kSilenceMs}};
  int on = 1;
  // On a UNIX socket these fail, and nothing is lost.
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  for (const auto& option : options) setsockopt(fd, IPPROTO_TCP, option.name, &option.value, sizeof option.value);
  // TCP's buffer grows by itself, a UNIX socket's stays at 208 KiB: sender and receiver then wait for each other in turn (measured: RAM goes a
  // quarter faster with this). Past net.core.wmem_max with CAP_NET_ADMIN only. socket(7), SO_SNDBUFFORCE
  int family = 0;
  socklen_t length = sizeof family;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) < 0 || family != AF_UNIX) return;
  int buffer = 2 << 20;
  if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer) < 0) {
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
  }
}

namespace {

constexpr int kBacklog = 16;

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
  int err = 0;
  sockaddr* raw() { return reinterpret_cast<sockaddr*>(&storage); }
};

/** A file descriptor that is closed unless it is taken. */
class OwnedFd {
 public:
  explicit OwnedFd(int fd) : fd_(fd) {}
  ~OwnedFd() {
    if (fd_ >= 0) close(fd_);
  }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  int get() const { return fd_; }
  int Take() {
    int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

Address UnixAddress(const std::string& path) {
  Address address;
  auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
  un->sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof un->sun_path) {
    address.err = path.empty() ? EINVAL : ENAMETOOLONG;
    return address;
  }
  memcpy(un->sun_path, path.c_str(), path.size() + 1);
  address.length = offsetof(sockaddr_un, sun_path) + path.size() + 1;
  return address;
}

Address InetAddress(int family, const std::string& host, uint64_t port) {
  Address address;
  addrinfo hints{};
  hints.ai_family = family;
  hints.ai_socktype = SOCK_STREAM;
  // Numeric only: names are the resolver's business, and it blocks. AI_PASSIVE: no host is the wildcard.
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
  addrinfo* found = nullptr;
  if (port > 65535 || getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    address.err = EINVAL;
    return address;
  }
  memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

/** nullopt with a TypeError or RangeError pending. */
std::optional<Address> ReadAddress(const Napi::Value& value) {
  Napi::Env env = value.Env();
  Napi::Value family = PropertyOf(value, "family");
  std::string name = family.IsString() ? family.As<Napi::String>().Utf8Value() : "";
  if (name == "unix") {
    Napi::Value path = PropertyOf(value, "path");
    if (path.IsString()) return UnixAddress(path.As<Napi::String>().Utf8Value());
    ThrowType(env, "path must be a string");
    return std::nullopt;
  }
  if (name != "inet" && name != "inet6") {
    ThrowType(env, "family must be inet, inet6 or unix");
    return std::nullopt;
  }
  Napi::Value host = PropertyOf(value, "host");
  if (!host.IsString()) {
    ThrowType(env, "host must be a string");
    return std::nullopt;
  }
  std::optional<uint64_t> port = ReadSize(PropertyOf(value, "port"), "port");
  if (!port) return std::nullopt;
  return InetAddress(name == "inet" ? AF_INET : AF_INET6, host.As<Napi::String>().Utf8Value(), *port);
}

/** On its own thread. The connected fd, or -errno. */
int ConnectWithin(Address address, int64_t timeoutNs) {
  int64_t deadline = MonotonicNs() + timeoutNs;
  OwnedFd fd(socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return -errno;
  auto left = [deadline] { return static_cast<int>(std::max<int64_t>(0, (deadline - MonotonicNs()) / 1000000)); };
  while (connect(fd.get(), address.raw(), address.length) < 0) {
    if (errno == EAGAIN && left() > 0) {
      poll(nullptr, 0, std::min(left(), 10));  // unix(7): the listener's queue is full just now
      continue;
    }
    if (errno != EINPROGRESS) return errno == EAGAIN ? -ETIMEDOUT : -errno;
    pollfd waiting = {fd.get(), POLLOUT, 0};
    int ready;
    do {
      ready = poll(&waiting, 1, left());
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) return -ETIMEDOUT;
    int err = 0;
    socklen_t length = sizeof err;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &err, &length);
    if (err != 0) return -err;
    break;
  }
  TuneStream(fd.get());
  return fd.Take();
}

Napi::Value Connect(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<Address> address = ReadAddress(info[0]);
  if (!address) return env.Undefined();
  std::optional<uint64_t> timeout = ReadSize(info[1], "timeoutMs");
  if (!timeout) return env.Undefined();
  int64_t timeoutNs = static_cast<int64_t>(std::min<uint64_t>(*timeout, 1000000000)) * 1000000;
  auto result = std::make_shared<int>(-address->err);
  Address target = *address;
  return RunOnThread(env, "connect",
                     {[result, target, timeoutNs] {
                        if (*result == 0) *result = ConnectWithin(target, timeoutNs);
                      },
                      [result](Napi::Env env, const Deferred& deferred) {
                        if (*result < 0) {
                          deferred.Reject(SysErrorValue(env, "connect", -*result));
                        } else {
                          deferred.Resolve(Napi::Number::New(env, *result));
                        }
                      }});
}

/** A socket file that nobody listens on any more is in the way of a new listener; one that is in use is not touched. */
bool RemoveStale(Address& address) {
  struct stat what;
  const char* path = reinterpret_cast<sockaddr_un*>(&address.storage)->sun_path;
  if (lstat(path, &what) < 0 || !S_ISSOCK(what.st_mode)) return false;
  OwnedFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (probe.get() < 0 || connect(probe.get(), address.raw(), address.length) == 0 || errno != ECONNREFUSED) return false;
  return unlink(path) == 0;
}

Napi::Value Listen(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<Address> address = ReadAddress(info[0]);
  if (!address) return env.Undefined();
  if (address->err != 0) return ThrowSys(env, "bind", address->err);
  int family = address->storage.ss_family;
  OwnedFd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return ThrowSys(env, "socket", errno);
  int on = 1;
  int off = 0;
  if (family == AF_UNIX) {
    fchmod(fd.get(), 0600);  // before bind: the socket file is made with this mode
  } else {
    setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  }
  // The wildcard of IPv6 takes IPv4 too: libvirt listens on [::] and connects to 127.0.0.1.
  if (family == AF_INET6) setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  if (bind(fd.get(), address->raw(), address->length) < 0) {
    int err = errno;
    bool again = err == EADDRINUSE && family == AF_UNIX && RemoveStale(*address);
    if (!again) return ThrowSys(env, "bind", err);
    if (bind(fd.get(), address->raw(), address->length) < 0) return ThrowSys(env, "bind", errno);
  }
  if (listen(fd.get(), kBacklog) < 0) return ThrowSys(env, "listen", errno);
  return Napi::Number::New(env, fd.Take());
}

Napi::Value LocalAddress(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<int> fd = ReadFd(info[0], "fd");
  if (!fd) return env.Undefined();
  Address address;
  address.length = sizeof address.storage;
  if (getsockname(*fd, address.raw(), &address.length) < 0) return ThrowSys(env, "getsockname", errno);
  Napi::Object object = Napi::Object::New(env);
  int family = address.storage.ss_family;
  char host[NI_MAXHOST] = "";
  char port[NI_MAXSERV] = "0";
  std::string path;
  if (family == AF_UNIX) {
    auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
    size_t room = address.length - offsetof(sockaddr_un, sun_path);
    if (room > 0 && un->sun_path[0] != '\0') path.assign(un->sun_path, strnlen(un->sun_path, room));
  } else {
    getnameinfo(address.raw(), address.length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
  }
  object.Set("family", family == AF_UNIX ? "unix" : family == AF_INET6 ? "inet6" : "inet");
  object.Set("host", std::string(host));
  object.Set("port", static_cast<double>(atoi(port)));
  object.Set("path", path);
  return object;
}

/** On its own thread, with its own duplicate of the listener. The accepted fd, or -errno; ECANCELED after closeListener. */
int AcceptOn(int listener) {
  for (;;) {
    pollfd waiting = {listener, POLLIN, 0};
    if (poll(&waiting, 1, -1) < 0 && errno != EINTR) return -errno;
    // Shut down: it does not listen any more. accept itself would say EAGAIN for ever on a UNIX socket.
    if ((waiting.revents & (POLLHUP | POLLERR)) != 0) return -ECANCELED;
    int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd >= 0) {
      TuneStream(fd);
      return fd;
    }
    if (errno == EINVAL) return -ECANCELED;
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) return -errno;
  }
}

Napi::Value Accept(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<int> fd = ReadFd(info[0], "listenFd");
  if (!fd) return env.Undefined();
  int listening = 0;
  socklen_t length = sizeof listening;
  if (getsockopt(*fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0) return ThrowSys(env, "accept", errno);
  if (listening == 0) return ThrowSys(env, "accept", EINVAL);
  auto listener = std::make_shared<OwnedFd>(fcntl(*fd, F_DUPFD_CLOEXEC, 0));
  if (listener->get() < 0) return ThrowSys(env, "dup", errno);
  auto result = std::make_shared<int>(0);
  return RunOnThread(env, "accept",
                     {[listener, result] { *result = AcceptOn(listener->get()); },
                      [result](Napi::Env env, const Deferred& deferred) {
                        if (*result < 0) {
                          deferred.Reject(SysErrorValue(env, "accept", -*result));
                        } else {
                          deferred.Resolve(Napi::Number::New(env, *result));
                        }
                      }});
}

Napi::Value CloseListener(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::optional<int> fd = ReadFd(info[0], "listenFd");
  if (!fd) return env.Undefined();
  Address address;
  address.length = sizeof address.storage;
  if (getsockname(*fd, address.raw(), &address.length) < 0) return ThrowSys(env, "getsockname", errno);
  auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
  if (address.storage.ss_family == AF_UNIX && address.length > offsetof(sockaddr_un, sun_path) && un->sun_path[0] != '\0') {
    unlink(un->sun_path);
  }
  shutdown(*fd, SHUT_RDWR);
  if (close(*fd) < 0) return ThrowSys(env, "close", errno);
  return env.Undefined();
}

}  // namespace

void InitSockets(Napi::Env env, Napi::Object exports) {
  exports.Set("connect", Napi::Function::New(env, Connect, "connect"));
  exports.Set("listen", Napi::Function::New(env, Listen, "listen"));
  exports.Set("localAddress", Napi::Function::New(env, LocalAddress, "localAddress"));
  exports.Set("accept", Napi::Function::New(env, Accept, "accept"));
  exports.Set("closeListener", Napi::Function::New(env, CloseListener, "closeListener"));
}

}  // namespace ferry
