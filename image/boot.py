"""What dockerd-entrypoint.sh runs with python -IS: the package without site's start-up work, which is a tenth of the whole.

-S leaves out the venv's packages too, so they are added here.
"""

import sys

sys.path.append(f"/opt/cachedind/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")

from cachedind.__main__ import main  # noqa: E402

sys.exit(main())
