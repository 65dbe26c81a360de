// Options that every migration connection gets. Called by sockets.cc for what it connects and accepts. Any thread.
#pragma once

namespace ferry {

/** TCP: no Nagle, and 30 s of silence (data or keep-alive probes unanswered) ends the connection. Nothing on other sockets. */
void TuneStream(int fd);

}  // namespace ferry
