"""Group `fairserve.dev`, version `v1alpha1`: what users write and what they are told.

The models are the single source of the CRDs (`crds/`) and of the API reference; their descriptions are
written for users. Defaults live here and not in the CRD schema: the operator and the API server write
nothing into a spec, so GitOps tools see no drift.
"""

from fairserve_operator.api.v1alpha1.application import (
    ApplicationInteractionLimits,
    ApplicationSpec,
    ApplicationStatus,
    Interaction,
    Learning,
    Match,
    Profile,
)
from fairserve_operator.api.v1alpha1.fields import InteractionLimit, SecretKeyRef, duration_s, size_bytes
from fairserve_operator.api.v1alpha1.prometheus import Prometheus, PrometheusAuth, PrometheusTls
from fairserve_operator.api.v1alpha1.servingpool import (
    DEFAULT_SIGNALS,
    Builtin,
    DefaultTenant,
    Overload,
    OverloadSignal,
    PoolQueue,
    PoolRef,
    Scheduler,
    Selector,
    ServingPoolSpec,
    ServingPoolStatus,
    Sidecar,
    Throttling,
    TokenWeights,
)
from fairserve_operator.api.v1alpha1.tenant import (
    ApiKey,
    HeaderIdentity,
    Identity,
    JwtIdentity,
    Queue,
    ServiceAccountIdentity,
    TenantApplications,
    TenantInteractionLimits,
    TenantSpec,
    TenantStatus,
    Users,
    UserSource,
)

GROUP = "fairserve.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

__all__ = [
    "API_VERSION",
    "DEFAULT_SIGNALS",
    "GROUP",
    "VERSION",
    "ApiKey",
    "ApplicationInteractionLimits",
    "ApplicationSpec",
    "ApplicationStatus",
    "Builtin",
    "DefaultTenant",
    "HeaderIdentity",
    "Identity",
    "Interaction",
    "InteractionLimit",
    "JwtIdentity",
    "Learning",
    "Match",
    "Overload",
    "OverloadSignal",
    "PoolQueue",
    "PoolRef",
    "Profile",
    "Prometheus",
    "PrometheusAuth",
    "PrometheusTls",
    "Queue",
    "Scheduler",
    "SecretKeyRef",
    "Selector",
    "ServiceAccountIdentity",
    "ServingPoolSpec",
    "ServingPoolStatus",
    "Sidecar",
    "TenantApplications",
    "TenantInteractionLimits",
    "TenantSpec",
    "TenantStatus",
    "Throttling",
    "TokenWeights",
    "UserSource",
    "Users",
    "duration_s",
    "size_bytes",
]
