"""What the configuration says of a Kubernetes cluster, as its driver takes it."""

from sandbox.kubernetes_pod import KubernetesOptions
from services.options import Options

RUNTIME_DEFAULT = "runtime/default"  # Accepts the runtime's own system call policy.


def kubernetes_options(options: Options) -> KubernetesOptions:
    """Give the driver's options."""
    profile = options.kubernetes_seccomp_profile
    accepts_default = profile == RUNTIME_DEFAULT
    return KubernetesOptions(
        namespace=options.kubernetes_namespace,
        context=options.kubernetes_context or None,
        runtime_class=options.kubernetes_runtime_class,
        image_pull_secret=options.kubernetes_image_pull_secret,
        service_account=options.kubernetes_service_account,
        seccomp_profile="" if accepts_default else profile,
        accepts_default_seccomp=accepts_default,
    )
