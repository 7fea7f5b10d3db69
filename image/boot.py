"""What dockerd-entrypoint.sh runs with python -IS: the package without site's start-up work, a tenth of the whole.

-S leaves out the venv's packages too, so they are added here.
"""

import sys

# Blocked since dockerd-entrypoint.sh: a SIGTERM that has come meanwhile ends the start here. The C module, because
# `signal` around it is a millisecond of imports.
from _signal import SIG_UNBLOCK, SIGTERM, pthread_sigmask

pthread_sigmask(SIG_UNBLOCK, [SIGTERM])

sys.path.append(f"/opt/cachedind/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")

from cachedind.__main__ import main  # noqa: E402

sys.exit(main())
